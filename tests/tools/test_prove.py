"""The committed proofs of tools/prove: complete, and what is not proved has a reason."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from bnfold.proof.claims import WAYS
from tests.tools.test_bench import check_origin, read
from tools._common import RESULTS, ROOT
from tools._data.traps import TRAPS
from tools._zoo.names import NAMES
from tools._zoo.onnx_zoo import KINDS
from tools._zoo.prove_zoo import NETWORKS, PEERS, STATUSES, summary

FOUND = {path.stem: read(path) for path in sorted((RESULTS / "prove").glob("*.json"))}
WRONG = {("training_norm", "onnxscript"): "norm", ("mul_of_columns", "onnxslim"): "mul"}


def check(one: dict[str, Any]) -> None:
    assert one["cpu_seconds"] > 0
    assert one["most"] >= one["before"] > 0
    assert set(one["claims"]) == set(WAYS)


@pytest.mark.parametrize("name", [name for name, result in FOUND.items() if "folds" in result])
def test_folds_are_proved_by_their_certificates(name: str) -> None:
    found = FOUND[name]["folds"]
    check_origin(found)
    assert tuple(found["proofs"]) == KINDS
    for one in found["proofs"].values():
        check(one)
        assert one["status"] == "proved"
        assert one["ran"]
        assert one["ulps"] <= 1


@pytest.mark.parametrize("name", [*NETWORKS, *TRAPS])
def test_results_of_other_tools_are_proved_or_rightly_refuted(name: str) -> None:
    found = FOUND[name]["peers"]
    check_origin(found)
    assert tuple(found["proofs"]) == PEERS
    for tool, one in found["proofs"].items():
        check(one)
        if node := WRONG.get((name, tool)):
            assert one["status"] == "refuted"
            assert one["begins"]["node"] == node
        elif one["status"] != "proved":
            assert one["status"] == "undecided"
            assert "the custom operator com.microsoft." in one["refusal"]["reason"]


def test_the_docs_count_them() -> None:
    totals = read(RESULTS / "prove.json")["totals"]["peers"].values()
    counts = [sum(found[status] for found in totals) for status in (*STATUSES, "fails")]
    told = " ".join((ROOT / "docs" / "check.md").read_text(encoding="utf-8").split())
    said = r"Of the (\d+) results of onnxsim, .* it proves (\d+) and refutes none; in the other (\d+)"
    found = re.search(said, told)
    assert found is not None
    assert [int(number) for number in found.groups()] == [sum(counts), counts[0], counts[2]]
    assert counts[1] == counts[3] == 0


def test_the_summary_adds_up() -> None:
    assert {name for name in FOUND if name not in TRAPS} <= set(NAMES)
    ordered = {name: FOUND[name] for name in (*NAMES, *TRAPS) if name in FOUND}
    assert read(RESULTS / "prove.json") == json.loads(json.dumps(summary(ordered)))
