"""tools/stacks: its pins, what it says of an absent stack, and what it has stored."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from bnfold.integrations.stack import TESTED
from tools._common import RESULTS, ROOT
from tools._stacks import stacks, stacks_table

SETUP = ROOT / "tools" / "_setup"
STORED = json.loads((RESULTS / "stacks.json").read_text())


def pins(name: str) -> dict[str, str]:
    text = (SETUP / f"stack-{name}.txt").read_text()
    lines = [line for line in text.splitlines() if line]
    found = dict(re.fullmatch(r"([\w.-]+)==(\S+)", line).groups() for line in lines)  # type: ignore[union-attr]
    assert len(found) == len(lines)
    return found


def test_the_versions_that_are_installed_are_those_that_were_tested() -> None:
    common = (ROOT / "constraints.txt").read_text()
    for stack in stacks.STACKS.values():
        if stack.environment:
            assert pins(stack.environment)[stack.package] == TESTED[stack.package]
        else:
            assert re.search(rf"^{stack.package}=={TESTED[stack.package]}(;|$)", common, re.MULTILINE)
    environments = {path.stem.removeprefix("stack-") for path in SETUP.glob("stack-*.txt")}
    assert environments == {stack.environment for stack in stacks.STACKS.values()} - {""}


def test_an_absent_stack_is_a_line_and_a_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(stacks, "RESULT", tmp_path / "stacks.json")
    monkeypatch.setattr(stacks, "ROOT", tmp_path)  # where no environment is
    monkeypatch.setattr("sys.argv", ["stacks", "openvino"])
    with pytest.raises(SystemExit, match="1"):
        stacks.main()
    assert capsys.readouterr().err == f"openvino: not installed; tested with openvino {TESTED['openvino']}\n"


@pytest.mark.parametrize("stack", STORED)
def test_what_is_stored_shows_what_is_claimed(stack: str) -> None:
    """Fewer batch norms with bnfold than without, and float results as exact."""
    assert stack in stacks.STACKS
    for network, found in STORED[stack].items():
        assert network in stacks.NETWORKS + stacks.MORE
        assert found["version"] == TESTED[stacks.STACKS[stack].package]
        without, with_ = (found["ways"][way] for way in ("without", "bnfold"))
        left = [row["batch_norms"] + row["per_channel"] for row in (without, with_)]
        assert left[1] < left[0], network
        if without["error"] < 1e-5:
            assert with_["error"] < 1e-5, network


def test_every_way_is_a_row() -> None:
    rows = list(stacks_table.rows(STORED))
    assert len(rows) == sum(len(found["ways"]) for each in STORED.values() for found in each.values())
    assert {len(row) for row in rows} == {len(stacks_table.HEADINGS)}
