"""tools/host_time: whom it times, on which lines of the launch table, and what it has stored."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.kernels.host import unavailable
from tools._common import RESULTS, ROOT, read
from tools._gpu import host_table

NAMES = {f"{host_table.TORCH}, {what}" for what in ("alone", "addition and ReLU")} | {
    f"{kind}, {what}, {row}"
    for kind in (host_table.BNFOLD, host_table.OPERATORS)
    for what in ("alone", "addition and ReLU")
    for row in ("one block", "cluster", "cooperative grid")
}


def complete(result: dict[str, Any]) -> bool:
    """Whether each has a time for each pass; operators have none of evaluation."""
    passes = {name: host_table.PASSES[: 2 if name.startswith("operators") else 3] for name in NAMES}
    found: dict[str, dict[str, float]] = result["us"]
    assert {name: tuple(times) for name, times in found.items()} == passes
    return all(time > 0 for times in found.values() for time in times.values())


@pytest.mark.xdist_group("recording driver")
@pytest.mark.skipif(unavailable() is not None, reason=unavailable() or "")
def test_each_takes_its_turn(tmp_path: Path) -> None:
    pytest.importorskip("cuda.core", reason="what launches the kernels comes with the extra `gpu`")
    output = tmp_path / "host_time.json"
    options = ["--rounds", "2", "--calls", "3", "--output", str(output)]
    command = [sys.executable, "-m", "tools._gpu.host_time", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert complete(json.loads(output.read_text()))


def test_what_is_stored_is_whole_and_shown() -> None:
    result = read(RESULTS / "host_time.json")
    assert complete(result)
    lines = host_table.lines(result)
    assert len(lines) == 2 + len(NAMES)
    assert all(name in "\n".join(lines) for name in NAMES)


def test_times_are_shown_beside_torchs() -> None:
    assert [host_table.cell(*each) for each in ((None, 10.0), (10.0, 10.0), (18.4, 10.0))] == [
        "",
        "10",
        "18 (1.8)",
    ]
