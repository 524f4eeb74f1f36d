"""What fold_program and fold_module leave of the batch norms of timm's networks. Started by tools/zoo_torch.

The networks, their randomized batch norms and what fold_onnx leaves of them are those of tools/zoo. Both
functions fold the same network, and every output is held against the network in float64. One network is one
process and one file in bench/results/zoo_torch/: an interrupted sweep goes on where it stopped.
bench/results/zoo_torch.json sums them up.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from rich.table import Table

from tools._common import RESULTS, origin, read, table
from tools._data.models import network as made_of
from tools._peers.peers import PACKAGES
from tools._zoo.sweep import EXACT, Results, Sweep, arrays, difference, in_float64, plain

PARTS = ("program", "module")
IDENTITY_MAP = "as the identity map"  # how the ledger of fold_module says that a call stays


def main() -> None:
    parser = SWEEP.parser(__doc__)
    parser.add_argument("--only", choices=PARTS, help="one of the two alone; keep what is known of the other")
    arguments = SWEEP.parsed(parser)
    parts = (arguments.only,) if arguments.only else PARTS
    if arguments.one:
        one(arguments.one, parts)
        return

    def wanted(name: str) -> bool:
        return arguments.again or not set(parts) <= set(SWEEP.known(name))

    SWEEP.run(arguments, wanted, ["--only", arguments.only] if arguments.only else [])


def one(name: str, parts: tuple[str, ...]) -> None:
    """Measures one network and stores the result."""
    import torch

    torch.set_num_threads(1)
    network, x = made_of(name)
    exact = in_float64(name, x.numpy())

    def error(module: Any) -> float:
        with torch.no_grad():
            return difference(arrays(module(x)), exact)

    result: dict[str, Any] = {
        "batch_norms": batch_norms(network, x),
        "left_by_fold_onnx": read(RESULTS / "zoo" / f"{name}.json")["raw"]["bnfold"]["batch_norms"],
        "error_of_float32": error(network),
    }
    known = SWEEP.known(name)
    for part in PARTS:
        if part in parts:
            result[part] = {**origin(*PACKAGES), **FOLDS[part](network, x, error)}
        elif part in known:
            result[part] = known[part]
    if all(part in result for part in PARTS):
        kept = {part: result[part]["kept"] for part in PARTS}
        result["kept_by_module_alone"] = because(kept["module"], kept["program"])
        result["kept_by_program_alone"] = because(kept["program"], kept["module"])
    SWEEP.store(name, result)


def fold_program(network: Any, x: Any, error: Callable[[Any], float]) -> dict[str, Any]:
    """The fold of what torch.export gives; its seconds are without the export."""
    import bnfold

    program = exported(network, x)
    folded, found = measured(partial(bnfold.fold_program, program))
    return {"left": calls(folded), **found, "error": error(folded.module())}


def fold_module(network: Any, x: Any, error: Callable[[Any], float]) -> dict[str, Any]:
    """The fold of the module; its seconds are with the export that it makes."""
    import bnfold

    folded, found = measured(partial(bnfold.fold_module, network, x))
    return {"left": batch_norms(folded, x), **found, "error": error(folded)}


FOLDS: dict[str, Callable[[Any, Any, Callable[[Any], float]], dict[str, Any]]] = {
    "program": fold_program,
    "module": fold_module,
}


def measured(fold: Callable[..., tuple[Any, Any]]) -> tuple[Any, dict[str, Any]]:
    """What a fold gives, and its numbers: once without its check, for the time, and once with it."""
    import bnfold

    begin = time.perf_counter()
    folded, report = fold(verify=False)
    middle = time.perf_counter()
    try:
        _, checked = fold(verify=True)
        check = checked.verification.status if checked.verification is not None else "nothing to check"
    except bnfold.VerifyError as failure:
        check = f"failed: {failure}"
    end = time.perf_counter()
    norms = [entry for entry in report.entries if "batch_norm" in entry.op]
    kept = {entry.name: plain(entry.reason) for entry in norms if entry.outcome == "kept"}
    return folded, {
        "merged": len(report.merged),
        "identity_maps": sum(IDENTITY_MAP in entry.reason for entry in norms if entry.outcome == "folded"),
        "kept": kept,
        "kept_because": because(kept, {}),
        "check": check,
        "seconds": round(middle - begin, 3),
        "seconds_with_check": round(end - middle, 3),
    }


def exported(network: Any, x: Any) -> Any:
    import torch

    with torch.no_grad():
        return torch.export.export(network, (x,))


def batch_norms(network: Any, x: Any) -> int:
    """How many a network computes."""
    return calls(exported(network, x))


def calls(program: Any) -> int:
    return sum("batch_norm" in str(node.target) for node in program.graph.nodes if node.op == "call_function")


def because(kept: dict[str, str], others: dict[str, str]) -> dict[str, int]:
    """The reasons of those that are not among the others, counted."""
    return dict(Counter(reason for name, reason in kept.items() if name not in others).most_common())


def faithful(found: dict[str, Any], part: str) -> bool:
    """Is the error below 1e-5, or not above twice the unfolded network's own?"""
    return bool(found[part]["error"] <= max(EXACT, 2 * found["error_of_float32"]))


def story(found: dict[str, Any]) -> str:
    """One network in a few words."""
    told = [
        f"{part} {found['batch_norms']} -> {found[part]['left']}, error {found[part]['error']:.1e}"
        for part in PARTS
        if part in found
    ]
    return f"fold_onnx leaves {found['left_by_fold_onnx']}, {', '.join(told)}{marks(found)}"


def marks(found: dict[str, Any]) -> str:
    """What is wrong with a result; "" is what it should be."""
    parts = [part for part in PARTS if part in found]
    wrong = {
        "ABOVE": "program" in found and found["program"]["left"] > found["left_by_fold_onnx"],
        "WRONG": not all(faithful(found, part) for part in parts),
        "FAILED": any(found[part]["check"].startswith("failed") for part in parts),
        "UNTOLD": any(
            found[part]["left"] != len(found[part]["kept"]) + found[part]["identity_maps"] for part in parts
        ),
    }
    return "".join(f" {mark}" for mark, so in wrong.items() if so)


def summary(results: Results) -> dict[str, Any]:
    """Every network's numbers, with the totals."""
    rows: dict[str, dict[str, Any]] = {}
    totals: Counter[str] = Counter()
    for name, found in results.items():
        if not set(PARTS) <= set(found):
            continue
        counts = {
            "batch_norms": found["batch_norms"],
            "left_by_fold_onnx": found["left_by_fold_onnx"],
            "left_by_fold_program": found["program"]["left"],
            "kept_by_fold_module": len(found["module"]["kept"]),
            "kept_by_fold_module_alone": sum(found["kept_by_module_alone"].values()),
            "identity_maps_of_fold_module": found["module"]["identity_maps"],
        }
        totals.update(counts)
        rows[name] = counts | {
            "error": {part: found[part]["error"] for part in PARTS},
            "faithful": all(faithful(found, part) for part in PARTS),
        }
    return {"totals": dict(totals), "networks": rows}


def view(results: Results) -> Table:
    """Every network: what was there, what each function leaves, and what is wrong."""
    headings = ("network", "there", "fold_onnx", *PARTS, "s", "error", "")
    made = table("left of the batch norms (module: kept + identity maps)", headings, left=["network", ""])
    for name, found in results.items():
        parts = [found[part] for part in PARTS if part in found]
        module = found.get("module")
        made.add_row(
            name,
            str(found["batch_norms"]),
            str(found["left_by_fold_onnx"]),
            str(found["program"]["left"]) if "program" in found else "-",
            f"{len(module['kept'])} + {module['identity_maps']}" if module else "-",
            " / ".join(f"{part['seconds']:.1f}" for part in parts),
            f"{max(part['error'] for part in parts):.1e}",
            marks(found),
        )
    return made


SWEEP = Sweep("zoo_torch", "tools._zoo.torch_zoo", story, view, summary)

if __name__ == "__main__":
    main()
