"""The proofs of tools/prove as a page tells them."""

from __future__ import annotations

import re
from typing import Any

from tools._common import markdown
from tools._data.traps import TRAPS
from tools._zoo.onnx_zoo import KINDS
from tools._zoo.prove_zoo import PEERS, STATUSES

__all__ = ["lines", "text"]

NAMES = {
    "onnxoptimizer_all": "onnxoptimizer",
    "onnxruntime": "onnxruntime, basic",
    "onnxruntime_extended": "onnxruntime, extended",
}
LABELS = {"training_norm": "a batch norm in training mode", "mul_of_columns": "a Mul by a number a column"}


def text(result: dict[str, Any]) -> str:
    """What came out of all proofs, traps not counted."""
    own, others = (result["totals"][part] for part in ("folds", "peers"))
    rows = [row["folds"] for row in result["networks"].values() if "folds" in row]
    seconds = sorted(one["cpu_seconds"] for row in rows for one in row.values() if "cpu_seconds" in one)
    most = max(own[kind]["most_bytes"] for kind in KINDS)
    ulps = max(own[kind]["ulps"] for kind in KINDS)
    reason = ", for they have operators of their own"
    told = {key: sum(found[key] for found in others.values()) for key in (*STATUSES, "fails")}
    return (
        f"**Proofs by `tools/prove`.** bnfold's folds of {len(rows)} networks with their certificates, two "
        f"exports each: {sum(own[kind]['proved'] for kind in KINDS)} of {len(seconds)} are proved, in "
        f"{seconds[0]:.1f} to {seconds[-1]:.1f} s of CPU time (median {seconds[len(seconds) // 2]:.1f}) and "
        f"{most / 1e6:.0f} MB at most; stored numbers are at most {ulps:.3f} ulp off. The table has what "
        "other tools make of raw exports with their constants computed, proved without any hint: CPU "
        f"seconds. Of {sum(told.values())} results {told['proved']} are proved, {told['refuted']} refuted, "
        f"{told['undecided']} undecided{reason if told['undecided'] else ''}; "
        f"{told['fails'] or 'no'} tool failed. Below them are two models that a Conv cannot take in, "
        f"whatever a tool thinks.{beside(result['against'])}"
    )


def beside(told: dict[str, Any]) -> str:
    """The proofs beside an older check, if both were run."""
    if not told["folds"]:
        return ""
    proof, check = told["proof"], told["check"]
    return (
        f" Of {told['folds']} folds, the proof and the check of 9a78de2, which compares runs, ran in turn "
        f"(`--against`): the proof took {proof['median']:.2f} s of CPU time in the median and "
        f"{proof['max']:.1f} at most, the check {check['median']:.2f} and {check['max']:.1f}, both as whole "
        "commands with what they import."
    )


def lines(result: dict[str, Any]) -> list[str]:
    """A row for each model, a column for each tool."""
    rows = []
    for name, row in result["networks"].items():
        if found := row.get("peers"):
            label = LABELS[name] if name in TRAPS else name
            rows.append((label, *(cell(found.get(tool)) for tool in PEERS)))
    return markdown(("model", *(NAMES.get(tool, tool) for tool in PEERS)), rows)


def cell(one: dict[str, Any] | None) -> str:
    """The status where it is not "proved", with the custom operator that is the reason, and seconds."""
    if one is None:
        return "-"
    if "failure" in one:
        return "fails"
    custom = re.search(r"custom operator com\.microsoft\.(\w+)", one.get("reason", ""))
    why = f"({custom[1]}) " if custom else ""
    status = {"proved": "", "refuted": "**refuted** ", "undecided": f"undecided {why}"}[one["status"]]
    return f"{status}{one['cpu_seconds']:.1f}"
