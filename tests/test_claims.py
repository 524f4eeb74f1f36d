"""tools/claims runs, its committed results are complete, and docs/training.md says nothing that they do not."""

from __future__ import annotations

import importlib
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("sklearn", reason="the digits lie in scikit-learn, of the extra train-demo")

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / "tools"
KINDS = ("without", "with")
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of tools/ by its name."""
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module


@pytest.fixture(scope="module")
def committed() -> Any:
    return json.loads((ROOT / "bench" / "results" / "claims.json").read_text())


def check(known: dict[str, Any]) -> None:
    """Every setting was run, and every run says how it ended."""
    assert set(known["versions"]) >= {"bnfold", "python", "numpy", "torch", "scikit-learn", "matplotlib"}
    assert known["machine"]["cpu"]
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", known["date"])
    protocol = known["protocol"]
    axes = (protocol["layers"], (False, True), protocol["learning_rates"], protocol["scales"])
    keys = ("layers", "batch_norm", "learning_rate", "scale", "seed")
    settings = [tuple(run[key] for key in keys) for run in known["runs"]]
    assert settings == list(itertools.product(*axes, range(protocol["seeds"])))
    for run in known["runs"]:
        assert run["ending"] in ("nan", "stuck", "learned")
        assert (run["loss"] is None) == (run["ending"] == "nan")
        assert run["steps"] is None or 0 < run["steps"] <= protocol["steps"]
        assert all(0 <= run[share] <= 1 for share in ("train", "test", "recalibrated"))
        assert run["batch_norm"] or run["recalibrated"] == run["test"]


def test_a_quick_run_stores_and_draws_all(tool: Any, tmp_path: Path) -> None:
    command = [sys.executable, str(TOOLS / "_claims.py"), "--quick", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "8 layers, with" in done.stdout
    known = json.loads((tmp_path / "claims.json").read_text())
    check(known)
    assert known["summary"] == tool("_claims_summary").summary(known["runs"])
    best = {kind: known["summary"]["3"][kind]["best"]["test"]["median"] for kind in KINDS}
    assert best["with"] >= 0.85
    picture = (tmp_path / "claims.png").read_bytes()
    assert picture.startswith(PNG)

    again = subprocess.run([*command, "--redraw"], capture_output=True, text=True, check=True)
    assert again.stdout.partition("runs;")[0] == done.stdout.partition("runs;")[0]
    assert json.loads((tmp_path / "claims.json").read_text()) == known
    assert (tmp_path / "claims.png").read_bytes() == picture


def test_a_run_is_the_same_again_and_batch_norm_is_all_that_differs(tool: Any) -> None:
    claims = tool("_claims_run")
    threads = torch.get_num_threads()
    try:
        setting = claims.Setting(3, True, 0.1, 1.0, seed=2)
        first, again = (claims.run(setting, epochs=1) for _ in range(2))
    finally:
        torch.set_num_threads(threads)
    assert first == again
    nets = [
        claims.network(setting._replace(batch_norm=kind), torch.Generator().manual_seed(2))
        for kind in (False, True)
    ]
    convs, others = ([part for part in net if isinstance(part, torch.nn.Conv2d)] for net in nets)
    assert len(convs) == len(others) == 3
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(convs, others, strict=True))
    assert torch.equal(nets[0][-1].weight, nets[1][-1].weight)


def test_numbers_that_are_lost_are_told(tool: Any) -> None:
    claims = tool("_claims_run")
    threads = torch.get_num_threads()
    try:
        found = claims.run(claims.Setting(8, False, 3.0, 4.0, seed=0), epochs=1)
    finally:
        torch.set_num_threads(threads)
    assert (found["ending"], found["steps"], found["loss"], found["test"]) == ("nan", None, None, 0.1)


def test_the_spread_of_what_never_happened_is_none(tool: Any) -> None:
    summary = tool("_claims_summary")
    runs = [{"steps": 7}, {"steps": None}, {"steps": 3}]
    assert summary.spread(map(summary.steps, runs)) == {"least": 3, "median": 7, "largest": None}
    assert summary.spread([]) is None
    assert tool("_claims_table").count({"least": 3, "median": 7, "largest": None}) == "7 (3 to never)"


# what is committed


def test_the_results_are_complete(tool: Any, committed: Any) -> None:
    check(committed)
    claims = tool("_claims")
    protocol = committed["protocol"]
    assert protocol["seeds"] == claims.SEEDS >= 5
    assert tuple(protocol["learning_rates"]) == claims.LEARNING_RATES
    assert tuple(protocol["scales"]) == claims.SCALES
    assert committed["summary"] == tool("_claims_summary").summary(committed["runs"])
    assert (ROOT / "docs" / "claims.png").read_bytes().startswith(PNG)
