"""What bnfold and its peers in torch leave, and how long the result takes. Started by tools/bench_fold_torch.

The small networks are those of bnfold's own tests, the large ones timm's, each in a process of its own.
bench/results/fold_torch.json keeps the latest of each part, with its machine and versions.
"""

from __future__ import annotations

import argparse
import collections
import copy
import warnings
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from bnfold.errors import first_line
from tests.torch_graph.modules import CASES, randomize
from tools._bench.torch_speed import VARIANTS
from tools._common import RESULTS, ROOT, console, measured, origin, read, table, write
from tools._peers.peers import PACKAGES
from tools._peers.torch_left import left, of_module
from tools._peers.torch_peers import TOOLS, error

STORED = RESULTS / "fold_torch.json"

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
    terminal, known = console(130), read(STORED)
    if arguments.only != "speed":
        with terminal.status("cases"):
            networks = {name: bench_case(name) for name in CASES}
        known["cases"] = {**origin(*PACKAGES), "networks": networks, "totals": totals(networks)}
        terminal.print(cases_table(networks), totals_table(len(networks), known["cases"]["totals"]))
        store(known)
    if arguments.only != "cases":
        speed, most = known.setdefault("speed", {}), arguments.seconds + PREPARING
        for name in arguments.models:
            with terminal.status(name):
                found = measured("tools._bench.torch_speed", name, arguments.seconds, most)
            speed[name] = {**origin(*PACKAGES), **found}
            store(known)
        terminal.print(speed_table({name: speed[name] for name in arguments.models}))
    terminal.print(f"Stored in {STORED.relative_to(ROOT)}.")


def store(known: dict[str, Any]) -> None:
    """In the order of PARTS and NETWORKS."""
    speed = known.get("speed", {})
    known = {**known, "speed": {name: speed[name] for name in NETWORKS if name in speed}}
    write(STORED, {part: known[part] for part in PARTS if part in known})


# what is left


def bench_case(name: str) -> dict[str, Any]:
    """Every tool on one small network, which is the same in every run."""
    make, shape, _ = CASES[name]
    torch.manual_seed(len(name))
    module = randomize(make())
    x = torch.randn(shape)
    with torch.no_grad():
        exact = copy.deepcopy(module).double()(x.double())
        given = left(of_module(copy.deepcopy(module), x))
        tools = {tool: tried(tool, copy.deepcopy(module), x, exact) for tool in TOOLS}
    return {"batch_norms": given.batch_norms, "per_channel": given.per_channel, "tools": tools}


def tried(tool: str, module: nn.Module, x: Tensor, exact: Tensor) -> dict[str, Any]:
    """One tool on one network: how it ended, the error of its output, and what it left."""
    try:
        folded = TOOLS[tool](module, x)
        output = folded.run(x)
    except Exception as raised:  # whatever stops a peer is its result
        return {"outcome": f"fails: {type(raised).__name__}: {first_line(raised)}"[:200]}
    off = error(output, exact)
    return {
        "outcome": "right" if off <= RIGHT else "wrong",
        "error": off,
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
    view = table(title, ("network", "given", *TOOLS), left=["network"])
    for name, network in networks.items():
        given = network["batch_norms"] + network["per_channel"]
        view.add_row(name, f"{given}", *(said(found) for found in network["tools"].values()))
    return view


def totals_table(networks: int, counts: dict[str, dict[str, int]]) -> Table:
    view = table(f"How often, of {networks}", ("tool", *ENDINGS), left=["tool"])
    for tool, row in counts.items():
        view.add_row(tool, *map(str, row.values()))
    return view


def totals(networks: dict[str, Any]) -> dict[str, dict[str, int]]:
    """In how many networks each tool ended how."""
    rows = {}
    for tool in TOOLS:
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


def speed_table(networks: dict[str, Any]) -> Table:
    headings = ("network", "variant", "batch norms", "median", "quartiles", "of it as it is", "rounds")
    view = table("One image in eager mode, one thread: milliseconds", headings, headings[:2])
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
