"""What bnfold and its peers in torch leave, and how long the result takes. Started by tools/bench_fold_torch.

The small networks are those of bnfold's own tests, the large ones timm's, each in a process of its own.
bench/results/fold_torch.json keeps the latest of each part, with its machine and versions.
"""

from __future__ import annotations

import argparse
import collections
import copy
import datetime
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import _peers
import _torch_left
import _torch_peers
import torch
from _torch_speed import VARIANTS
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from bnfold.errors import first_line
from tests.torch_graph.modules import CASES, randomize

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results" / "fold_torch.json"

PARTS = ("cases", "speed")
ENDINGS = ("nothing left", "identity map", "some left", "wrong", "fails")
NETWORKS = ("resnet50", "mobilenetv3_large_100", "levit_128s")
RIGHT = 1e-5  # of the largest value, in float32
PREPARING = 300.0  # seconds beside those of measuring


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="bench_fold_torch")
    parser.add_argument("--only", choices=PARTS, help="one part; the results of the other stay")
    parser.add_argument("--models", nargs="+", choices=NETWORKS, default=NETWORKS, metavar="MODEL",
                        help=f"speed of only these of {', '.join(NETWORKS)}")  # fmt: skip
    parser.add_argument("--seconds", type=float, default=40.0, help="of measuring each model (default 40)")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")  # that parts of torch are deprecated is no news here
    console = Console(width=None if sys.stdout.isatty() else 130)
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if arguments.only != "speed":
        with console.status("cases"):
            networks = {name: bench_case(name) for name in CASES}
        known["cases"] = {**origin(), "networks": networks, "totals": totals(networks)}
        console.print(cases_table(networks), totals_table(len(networks), known["cases"]["totals"]))
        store(known)
    if arguments.only != "cases":
        speed = known.setdefault("speed", {})
        for name in arguments.models:
            with console.status(name):
                speed[name] = {**origin(), **bench_speed(name, arguments.seconds)}
            store(known)
        console.print(speed_table({name: speed[name] for name in arguments.models}))
    console.print(f"Stored in {RESULTS.relative_to(ROOT)}.")


def origin() -> dict[str, Any]:
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    return {"machine": _peers.machine(), "date": today, "versions": _peers.versions("torch", "timm")}


def store(known: dict[str, Any]) -> None:
    """In the order of PARTS and NETWORKS."""
    speed = known.get("speed", {})
    known = {**known, "speed": {name: speed[name] for name in NETWORKS if name in speed}}
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps({part: known[part] for part in PARTS if part in known}, indent=1) + "\n")


# what is left


def bench_case(name: str) -> dict[str, Any]:
    """Every tool on one small network, which is the same in every run."""
    make, shape, _ = CASES[name]
    torch.manual_seed(len(name))
    module = randomize(make())
    x = torch.randn(shape)
    with torch.no_grad():
        exact = copy.deepcopy(module).double()(x.double())
        given = _torch_left.left(_torch_left.of_module(copy.deepcopy(module), x))
        tools = {tool: tried(tool, copy.deepcopy(module), x, exact) for tool in _torch_peers.TOOLS}
    return {"batch_norms": given.batch_norms, "per_channel": given.per_channel, "tools": tools}


def tried(tool: str, module: nn.Module, x: Tensor, exact: Tensor) -> dict[str, Any]:
    """One tool on one network: how it ended, the error of its output, and what it left."""
    try:
        folded = _torch_peers.TOOLS[tool](module, x)
        output = folded.run(x)
    except Exception as raised:  # whatever stops a peer is its result
        return {"outcome": f"fails: {type(raised).__name__}: {first_line(raised)}"[:200]}
    error = float((output.double() - exact).abs().max() / exact.abs().max())
    return {
        "outcome": "right" if error <= RIGHT else "wrong",
        "error": error,
        "batch_norms": folded.left.batch_norms,
        "per_channel": folded.left.per_channel,
        "identity": folded.identity,
    }


def rest(found: dict[str, Any]) -> int:
    """Of what a tool left, all but the batch norms that are the identity map."""
    return int(found["batch_norms"] + found["per_channel"] - found["identity"])


def said(found: dict[str, Any]) -> str:
    """What is left, the identity maps in brackets; or how it went wrong."""
    if found["outcome"] != "right":
        return f"wrong ({found['error']:.0e})" if found["outcome"] == "wrong" else "fails"
    return f"{rest(found)}" + (f" ({found['identity']})" if found["identity"] else "")


def cases_table(networks: dict[str, Any]) -> Table:
    title = "What is left: batch norms and per-channel nodes (and batch norms that are the identity map)"
    view = Table(title=title, title_justify="left")
    view.add_column("network")
    for heading in ("given", *_torch_peers.TOOLS):
        view.add_column(heading, justify="right")
    for name, network in networks.items():
        given = network["batch_norms"] + network["per_channel"]
        view.add_row(name, f"{given}", *(said(found) for found in network["tools"].values()))
    return view


def totals_table(networks: int, counts: dict[str, dict[str, int]]) -> Table:
    view = Table(title=f"How often, of {networks}", title_justify="left")
    view.add_column("tool")
    for heading in ENDINGS:
        view.add_column(heading, justify="right")
    for tool, row in counts.items():
        view.add_row(tool, *map(str, row.values()))
    return view


def totals(networks: dict[str, Any]) -> dict[str, dict[str, int]]:
    """In how many networks each tool ended how."""
    rows = {}
    for tool in _torch_peers.TOOLS:
        counts = collections.Counter(ending(network["tools"][tool]) for network in networks.values())
        rows[tool] = {end: counts[end] for end in ENDINGS}
    return rows


def ending(found: dict[str, Any]) -> str:
    """One of ENDINGS; "identity map": there are batch norms left, but all of them are."""
    if found["outcome"] != "right":
        return str(found["outcome"]).partition(":")[0]
    if rest(found):
        return "some left"
    return "identity map" if found["identity"] else "nothing left"


# speed


def bench_speed(name: str, seconds: float) -> dict[str, Any]:
    """One of timm's networks, in a process of its own."""
    program = Path(__file__).with_name("_torch_speed.py")
    command = [sys.executable, str(program), name, "--seconds", str(seconds)]
    lines, failure = _peers.run(command, seconds + PREPARING)
    if failure:
        raise RuntimeError(f"{name}: {failure}")
    return lines[0]


def speed_table(networks: dict[str, Any]) -> Table:
    view = Table(title="One image in eager mode, one thread: milliseconds", title_justify="left")
    for heading in ("network", "variant", "batch norms", "median", "quartiles", "of it as it is", "rounds"):
        view.add_column(heading, justify="left" if heading in ("network", "variant") else "right")
    for name, network in networks.items():
        base = network["variants"]["as it is"]["median"]
        for variant in VARIANTS:
            found = network["variants"][variant]
            if found["failure"]:
                view.add_row(name, variant, "fails")
                continue
            count = f"{found['left'] - found['identity']}"
            count += f" ({found['identity']})" if found["identity"] else ""
            spread = f"{found['quartile_1']:.2f} - {found['quartile_3']:.2f}"
            middle = found["median"]
            row = (count, f"{middle:.2f}", spread, f"{middle / base:.3f}", f"{network['rounds']}")
            view.add_row(name, variant, *row)
        view.add_section()
    return view


if __name__ == "__main__":
    main()
