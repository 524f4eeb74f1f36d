"""What bnfold and its peers leave of the batch norms of timm's networks. Started by tools/zoo; takes hours.

Each network is exported twice (torch's raw graph, and what its exporter makes of it by default), with batch
norms randomized, and every tool folds both files. One network is one process and one file in
bench/results/zoo/: an interrupted sweep goes on where it stopped. bench/results/zoo.json sums them up. With
--bound, what bnfold leaves stands beside the least that can stay (tests/fold/bound.py).
"""

from __future__ import annotations

import collections
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from bnfold.fold.graph import Node
from bnfold.fold.roles import Affine
from tools._common import ROOT, origin, session, table
from tools._data.models import FEW, HALF, SEED, export_by_itself
from tools._peers import peers
from tools._peers.left import PerChannel, inspect, left
from tools._zoo.names import SIGNED
from tools._zoo.sweep import EXACT, Results, Sweep, difference, in_float64, plain

CACHE = ROOT / ".cache" / "zoo"

KINDS = ("raw", "default")
TOOL_TIMEOUT = 120.0  # seconds of one tool on one file

# Every pass of onnxoptimizer may run here: the question is what is left, not how fast.
PEERS = ("onnxruntime", "onnxsim", "onnxslim", "onnxoptimizer_all", "onnxscript")


def main() -> None:
    parser = SWEEP.parser(__doc__)
    parser.add_argument("--no-peers", action="store_true", help="bnfold alone; keep what is known of peers")
    parser.add_argument("--bound", action="store_true", help="also the least that can stay (minutes)")
    parser.add_argument("--drop", action="store_true", help="delete each network's exports when it is done")
    arguments = SWEEP.parsed(parser)
    if arguments.one:
        one(arguments.one, not arguments.no_peers, arguments.bound, arguments.drop)
        return
    fresh = arguments.again or arguments.no_peers or arguments.bound
    flags = ("no-peers", "bound", "drop")
    options = [f"--{key}" for key in flags if getattr(arguments, key.replace("-", "_"))]
    SWEEP.run(arguments, lambda name: fresh or not SWEEP.known(name), options)


def one(name: str, others: bool, bounded: bool, drop: bool) -> None:
    """Measures one network and stores the result."""
    paths = exports(name)
    before, own = inspect(paths["raw"])
    known = SWEEP.known(name)
    result: dict[str, Any] = {"batch_norms": before, **origin(*peers.PACKAGES)}
    for kind in KINDS:
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            result[kind] = {
                "given": count(paths[kind], own)["left"],
                "bnfold": bnfold(name, paths[kind], Path(folder), own),
                "peers": {tool: peer(tool, paths[kind], Path(folder), own) for tool in PEERS}
                if others
                else known.get(kind, {}).get("peers", {}),
                "least": least(paths[kind]) if bounded else known.get(kind, {}).get("least"),
            }
    if name in SIGNED:
        result["few_negative"] = few_negative(name)
    SWEEP.store(name, result)
    if drop:
        for used in paths.values():
            used.unlink()


def exports(name: str) -> dict[str, Path]:
    """Both exports, made unless they are there."""
    paths = {kind: CACHE / f"{name}.{kind}.onnx" for kind in KINDS}
    if not all(path.exists() for path in paths.values()):
        export_by_itself(name, HALF, *paths.values())
    return paths


def few_negative(name: str) -> dict[str, Any]:
    """What bnfold leaves in the raw export if only few of the scales are negative, as in trained networks."""
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        source, target = Path(folder) / "raw.onnx", Path(folder) / "bnfold.onnx"
        export_by_itself(name, FEW, source)
        _, own = inspect(source)
        peers.TOOLS["bnfold"].load()(str(source), str(target))
        x = np.random.default_rng(SEED).standard_normal(input_shape(source), dtype=np.float32)
        return {**count(target, own), "error": difference(infer(target, x), infer(source, x))}


def count(path: Path, own: frozenset[PerChannel]) -> dict[str, Any]:
    rest = left(path, own)
    return {"left": rest.total, "batch_norms": rest.batch_norms, "per_channel": rest.per_channel}


def bnfold(name: str, source: Path, folder: Path, own: frozenset[PerChannel]) -> dict[str, Any]:
    """What bnfold leaves and why, and the error it makes, relative to the output's largest value."""
    target = folder / "bnfold.onnx"
    begin = time.perf_counter()
    report = peers.TOOLS["bnfold"].load()(str(source), str(target))
    seconds = time.perf_counter() - begin
    kept = collections.Counter(plain(entry.reason) for entry in report.kept)  # type: ignore[attr-defined]
    found = {**count(target, own), "seconds": round(seconds, 3), "kept_because": dict(kept.most_common())}
    x = np.random.default_rng(SEED).standard_normal(input_shape(source), dtype=np.float32)
    want, got = infer(source, x), infer(target, x)
    found["error"] = difference(got, want)
    if found["error"] > EXACT:
        exact = in_float64(name, x)
        found["error_of_float32"] = {"unfolded": difference(want, exact), "folded": difference(got, exact)}
    return found


def least(path: Path) -> int | None:
    """How many batch norms stay at least, whatever the order of the folds; None: too large a system.

    In the change model of bnfold: scales and shifts, and no operator in another's place.
    """
    from bnfold.onnx_graph.file.loaded import load
    from bnfold.onnx_graph.read import read
    from tests.fold.bound import bound

    graph = read(load(path))
    try:
        found = bound(graph, lambda node: 1.0 if is_norm(node) else 1e-3)
    except ValueError:
        return None
    return sum(map(is_norm, graph.nodes)) - sum(map(is_norm, found.vanish))


def is_norm(node: Node) -> bool:
    return isinstance(node.role, Affine) and node.role.kind == "norm"


def peer(tool: str, source: Path, folder: Path, own: frozenset[PerChannel]) -> dict[str, Any]:
    """What a peer leaves, in a process of its own."""
    target = folder / f"{tool}.onnx"
    outcome = peers.measure(tool, source, target, 1, TOOL_TIMEOUT)
    if outcome.failure:
        return {"failure": outcome.failure}
    return {**count(target, own), "seconds": round(outcome.seconds[0], 3)}


def input_shape(path: Path) -> list[int]:
    import onnx

    [value] = onnx.load(path, load_external_data=False).graph.input
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim]


def infer(path: Path, x: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    """The outputs in onnxruntime, with its optimizer off."""
    found = session(path, optimize=False, threads=0)
    return list(found.run(None, {found.get_inputs()[0].name: x}))


def story(found: dict[str, Any]) -> str:
    """Both exports in a few words."""
    return ", ".join(f"{kind} {story_of(found[kind])}" for kind in KINDS)


def story_of(found: dict[str, Any]) -> str:
    best = best_peer(found)
    beside = [f"best peer {best}"] if best is not None else []
    beside += [f"at least {found['least']}"] if found.get("least") is not None else []
    said = f" ({', '.join(beside)})" if beside else ""
    return f"{found['given']} -> {found['bnfold']['left']}{said}, error {found['bnfold']['error']:.1e}"


def best_peer(found: dict[str, Any]) -> int | None:
    return min((peer["left"] for peer in found["peers"].values() if "left" in peer), default=None)


def faithful(found: dict[str, Any]) -> bool:
    """Is the error below 1e-5, or not above twice the unfolded model's own?"""
    ours = found["bnfold"]
    if ours["error"] <= EXACT:
        return True
    errors = ours["error_of_float32"]
    return bool(errors["folded"] <= 2 * errors["unfolded"])


def summary(results: Results) -> dict[str, Any]:
    """Every network's numbers, with the totals."""
    rows = {}
    totals = {kind: collections.Counter[str]() for kind in KINDS}
    for name, result in results.items():
        rows[name] = {"batch_norms": result["batch_norms"]}
        if "few_negative" in result:
            rows[name]["few_negative"] = result["few_negative"]["left"]
        for kind in KINDS:
            found = result[kind]
            rest = {"given": found["given"], "bnfold": found["bnfold"]["left"]}
            rest |= {tool: peer.get("left") for tool, peer in found["peers"].items()}
            rows[name][kind] = {"left": rest, "error": found["bnfold"]["error"], "faithful": faithful(found)}
            if found.get("least") is not None:
                rows[name][kind]["least"] = found["least"]
            # A peer that failed on a file left that file as it was.
            totals[kind].update({tool: found["given"] if n is None else n for tool, n in rest.items()})
    return {"totals": {kind: dict(total) for kind, total in totals.items()}, "networks": rows}


def view(results: Results) -> Table:
    """Both exports of every network: what was there, and what each tool leaves."""
    others = (peer.removesuffix("_all") for peer in PEERS)
    headings = ("network", "there", "bnfold", "least", *others, "error", "")
    made = table("left of the batch norms (raw export / default export)", headings, left=["network", ""])
    for name, result in results.items():
        both = [result[kind] for kind in KINDS]
        cells = [[str(found["peers"].get(tool, {}).get("left", "-")) for found in both] for tool in PEERS]
        error = max(found["bnfold"]["error"] for found in both)
        marks = [] if all(map(faithful, both)) else ["WRONG"]
        if any((best := best_peer(found)) is not None and found["bnfold"]["left"] > best for found in both):
            marks.append("ABOVE")
        made.add_row(
            name,
            " / ".join(str(found["given"]) for found in both),
            " / ".join(str(found["bnfold"]["left"]) for found in both),
            " / ".join("-" if found.get("least") is None else str(found["least"]) for found in both),
            *(" / ".join(pair) for pair in cells),
            f"{error:.1e}",
            " ".join(marks),
        )
    return made


SWEEP = Sweep("zoo", "tools._zoo.onnx_zoo", story, view, summary)

if __name__ == "__main__":
    main()
