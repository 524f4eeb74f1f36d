"""tools/claims runs, its committed results are complete, and docs/training.md says what they say."""

from __future__ import annotations

import itertools
import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tools.conftest import Ran
from tools._claims import run as claims
from tools._claims import summary, table
from tools._common import RESULTS, ROOT

pytest.importorskip("sklearn", reason="the digits lie in scikit-learn, of the extra train-demo")

KINDS = ("without", "with")
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def committed() -> Any:
    return json.loads((RESULTS / "claims.json").read_text())


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


def test_a_quick_run_stores_and_draws_all(ran: Ran, ran_here: Ran, tmp_path: Path) -> None:
    arguments = ("_claims.claims", "--quick", "--folder", tmp_path)
    done = ran(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert "8 layers, with" in done.stdout
    known = json.loads((tmp_path / "claims.json").read_text())
    check(known)
    assert known["summary"] == summary.summary(known["runs"])
    best = {kind: known["summary"]["3"][kind]["best"]["test"]["median"] for kind in KINDS}
    assert best["with"] >= 0.8
    picture = (tmp_path / "claims.png").read_bytes()
    assert picture.startswith(PNG)

    again = ran_here(*arguments, "--redraw")
    assert again.returncode == 0
    assert again.stdout.partition("runs;")[0] == done.stdout.partition("runs;")[0]
    assert json.loads((tmp_path / "claims.json").read_text()) == known
    assert (tmp_path / "claims.png").read_bytes() == picture


@pytest.mark.usefixtures("one_thread")
def test_a_run_is_the_same_again_and_batch_norm_is_all_that_differs() -> None:
    setting = claims.Setting(3, True, 0.1, 1.0, seed=2)
    first, again = (claims.run(setting, epochs=1) for _ in range(2))
    assert first == again
    nets = [
        claims.network(setting._replace(batch_norm=kind), torch.Generator().manual_seed(2))
        for kind in (False, True)
    ]
    convs, others = ([part for part in net if isinstance(part, torch.nn.Conv2d)] for net in nets)
    assert len(convs) == len(others) == 3
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(convs, others, strict=True))
    assert torch.equal(nets[0][-1].weight, nets[1][-1].weight)


@pytest.mark.usefixtures("one_thread")
def test_numbers_that_are_lost_are_told() -> None:
    found = claims.run(claims.Setting(8, False, 3.0, 4.0, seed=0), epochs=1)
    assert (found["ending"], found["steps"], found["loss"], found["test"]) == ("nan", None, None, 0.1)


def test_the_spread_of_what_never_happened_is_none() -> None:
    runs = [{"steps": 7}, {"steps": None}, {"steps": 3}]
    assert summary.spread(map(summary.steps, runs)) == {"least": 3, "median": 7, "largest": None}
    assert summary.spread([]) is None
    assert table.count({"least": 3, "median": 7, "largest": None}) == "7 (3 to never)"


# what is committed


def test_the_results_are_complete(committed: Any) -> None:
    check(committed)
    from tools._claims.claims import LEARNING_RATES, SCALES, SEEDS

    protocol = committed["protocol"]
    assert protocol["seeds"] == SEEDS >= 5
    assert tuple(protocol["learning_rates"]) == LEARNING_RATES
    assert tuple(protocol["scales"]) == SCALES
    assert committed["summary"] == summary.summary(committed["runs"])
    assert (ROOT / "docs" / "claims.png").read_bytes().startswith(PNG)


class Runs:
    """The committed runs by setting."""

    def __init__(self, runs: list[dict[str, Any]]) -> None:
        self.runs = runs

    def of(self, **wanted: Any) -> list[dict[str, Any]]:
        return [run for run in self.runs if all(run[key] == value for key, value in wanted.items())]

    def accuracy(self, layers: int, batch_norm: bool, rate: float, scale: float, key: str = "test") -> float:
        """Median over the seeds, in percent, one digit."""
        found = self.of(layers=layers, batch_norm=batch_norm, learning_rate=rate, scale=scale)
        return round(100 * statistics.median(run[key] for run in found), 1)

    def steps(self, layers: int, batch_norm: bool, rate: float) -> list[int | None]:
        found = self.of(layers=layers, batch_norm=batch_norm, learning_rate=rate, scale=1.0)
        return [run["steps"] for run in found]


def test_the_page_on_failures_and_speed(committed: Any) -> None:
    runs, summary = Runs(committed["runs"]), committed["summary"]
    for kind, nan in ((False, 66), (True, 0)):
        found = runs.of(batch_norm=kind)
        assert (len(found), sum(run["ending"] == "nan" for run in found)) == (350, nan)
    stuck = runs.of(batch_norm=True, ending="stuck")
    assert [(run["learning_rate"], run["scale"]) for run in stuck] == [(3.0, 0.25)] * 2
    fastest = {layers: [both[kind]["fastest"]["steps"]["median"] for kind in KINDS]
               for layers, both in summary.items()}  # fmt: skip
    assert fastest == {"3": [76, 38], "8": [140, 39]}

    slow = [runs.steps(8, kind, 0.003) for kind in (False, True)]
    assert [sum(steps is not None for steps in found) for found in slow] == [3, 0]
    medians = [sorted(steps or 999 for steps in runs.steps(8, kind, 0.01))[2] for kind in (False, True)]
    assert medians == [140, 141]
    protocol = committed["protocol"]
    better = [
        (layers, rate, scale)
        for layers in protocol["layers"]
        for rate in protocol["learning_rates"]
        for scale in protocol["scales"]
        if runs.accuracy(layers, False, rate, scale) > runs.accuracy(layers, True, rate, scale)
    ]
    assert better == [(3, 0.003, 2.0), (3, 0.003, 4.0), (3, 0.01, 2.0)]
    assert [runs.accuracy(3, kind, 0.003, 2.0) for kind in (False, True)] == [92.7, 72.8]


def test_the_page_on_initial_weights(committed: Any) -> None:
    runs, protocol = Runs(committed["runs"]), committed["protocol"]
    for rate in protocol["learning_rates"]:
        for scale in protocol["scales"]:
            assert scale == 1 or runs.accuracy(8, False, rate, scale) < 25
            if 0.03 <= rate <= 0.3 and (rate, scale) != (0.03, 4.0):
                assert runs.accuracy(8, True, rate, scale) >= 97
    assert runs.accuracy(8, True, 0.03, 4.0) == 96.5
    assert [runs.accuracy(3, True, 0.003, scale) for scale in (0.25, 4.0)] == [93.8, 59.4]
    assert [runs.accuracy(8, True, 3.0, scale) for scale in (0.25, 4.0)] == [28.0, 95.7]


def test_the_page_on_the_gap_and_recalibration(committed: Any) -> None:
    runs, summary = Runs(committed["runs"]), committed["summary"]
    pairs = [both["paired"] for both in summary.values()]
    assert [pair["pairs"] for pair in pairs] == [24, 5]
    assert sum(pair["smaller_with"] for pair in pairs) == 23
    assert sum(pair["larger_with"] for pair in pairs) == 4
    for pair in pairs:
        assert 0.005 < pair["without"]["median"] - pair["with"]["median"] < 0.015
    for both in summary.values():
        assert both["with"]["recalibration"]["median"] == 0
    fast = [run for run in runs.of(layers=8, batch_norm=True, ending="learned") if run["learning_rate"] >= 1]
    change = [100 * (run["recalibrated"] - run["test"]) for run in fast]
    assert round(statistics.mean(change)) == 3
    assert round(min(change)) == -5
    assert [runs.accuracy(8, True, 1.0, 0.25, key) for key in ("test", "recalibrated")] == [91.7, 97.0]
