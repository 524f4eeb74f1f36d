"""Which exports of timm's networks TensorRT-RTX parses and builds, as they are and folded. See tools/zoo.

Each export, raw and default, is given to TensorRT-RTX as it is, and after `bnfold fold --target tensorrt`; it
is built without a GPU and never executed. bench/results/zoo_tensorrt.json sums the networks up.
"""

from __future__ import annotations

import collections
import time
from pathlib import Path
from typing import Any

from rich.table import Table

from tools._common import origin, table
from tools._peers.peers import PACKAGES
from tools._zoo.onnx_zoo import KINDS, exports
from tools._zoo.sweep import Results, Sweep

CAPABILITY = "8.0"


def main() -> None:
    parser = SWEEP.parser(__doc__)
    parser.add_argument("--drop", action="store_true", help="delete each network's exports when it is done")
    arguments = SWEEP.parsed(parser)
    if arguments.one:
        one(arguments.one, arguments.drop)
        return
    SWEEP.run(arguments, lambda name: arguments.again or not SWEEP.known(name), ["--drop"] * arguments.drop)


def one(name: str, drop: bool) -> None:
    """Builds one network and stores what came of it."""
    paths = exports(name)
    SWEEP.store(name, {**origin(*PACKAGES), **{kind: kinds(path) for kind, path in paths.items()}})
    if drop:
        for used in paths.values():
            used.unlink()


def kinds(path: Path) -> dict[str, Any]:
    """One export: as it is, and folded."""
    import bnfold
    from bnfold.onnx_graph.file.loaded import load

    begin = time.perf_counter()
    folded, report = bnfold.fold_onnx(path, target="tensorrt")
    seconds = time.perf_counter() - begin
    ops = collections.Counter(entry.op for entry in report.rewritten)
    return {
        "given": build(load(path)),
        "folded": build(load(folded)),
        "fold_seconds": round(seconds, 2),
        "verification": report.verification.status if report.verification else "nothing to fold",
        "rewritten": dict(ops),
        "notes": report.notes,
    }


def build(loaded: Any) -> dict[str, Any]:
    """What the builder says: why it refuses the model, or where batch norms and ReLUs went."""
    from bnfold.errors import BnfoldError
    from bnfold.tensorrt import engine

    begin = time.perf_counter()
    try:
        built = engine.build(loaded, flavour="tensorrt-rtx", compute_capabilities=[CAPABILITY])
    except BnfoldError as error:
        return {"refused": str(error).removeprefix(loaded.where)}
    assert built.placement is not None
    counts = {
        key: dict(collections.Counter(place.outcome for place in places))
        for key, places in (("batch_norms", built.placement.batch_norms), ("relus", built.placement.relus))
    }
    layers = len(built.placement.layers)
    seconds = round(time.perf_counter() - begin, 2)
    return {"builder": built.builder, "seconds": seconds, "layers": layers, **counts}


def story(found: dict[str, Any]) -> str:
    """Both exports in a few words."""
    return ", ".join(
        f"{kind}: {words(found[kind]['given'])} -> {words(found[kind]['folded'])}" for kind in KINDS
    )


def words(outcome: dict[str, Any]) -> str:
    if "refused" in outcome:
        return "refused"
    norms = outcome["batch_norms"]
    return f"{sum(norms.values())} norms, {norms.get('stand-alone', 0)} alone, {outcome['layers']} layers"


def summary(results: Results) -> dict[str, Any]:
    """How many exports are built, before and after."""
    totals = {}
    for kind in KINDS:
        for state in ("given", "folded"):
            outcomes = [found[kind][state] for found in results.values()]
            built = [outcome for outcome in outcomes if "refused" not in outcome]
            totals[f"{kind}, {state}"] = {
                "networks": len(outcomes),
                "built": len(built),
                "batch_norms": sum(sum(outcome["batch_norms"].values()) for outcome in built),
                "layers": sum(outcome["layers"] for outcome in built),
                "stand_alone": sum(outcome["batch_norms"].get("stand-alone", 0) for outcome in built),
            }
    builders = sorted(
        {o["builder"] for f in results.values() for k in KINDS if "builder" in (o := f[k]["folded"])}
    )
    return {"builders": builders, "totals": totals}


def view(results: Results) -> Table:
    """Every network, both exports, before and after."""
    headings = ("network", "raw export", "default export", "rewritten")
    made = table("TensorRT-RTX, as given -> folded", headings, left=headings)
    for name, found in results.items():
        cells = [f"{words(found[kind]['given'])} -> {words(found[kind]['folded'])}" for kind in KINDS]
        ops = ", ".join(
            f"{count} {op.removeprefix('bnfold.')}" for op, count in found["raw"]["rewritten"].items()
        )
        made.add_row(name, *cells, ops)
    return made


SWEEP = Sweep("zoo_tensorrt", "tools._zoo.tensorrt_zoo", story, view, summary)

if __name__ == "__main__":
    main()
