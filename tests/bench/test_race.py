"""Timing side by side: the orders, the clock, the numbers."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from bnfold.bench.race import FEWEST, WARM_RUNS, Standing, Standings, race


class Clock:
    """Time passes only when somebody runs."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ran: list[str] = []

    def __call__(self) -> float:
        return self.now


class Runner:
    """Takes so long, times how slow the machine is at that run."""

    provider = "fake"

    def __init__(self, name: str, clock: Clock, seconds: float) -> None:
        self.name, self.clock, self.seconds = name, clock, seconds
        self.notes: list[str] = []

    def run(self) -> None:
        self.clock.ran.append(self.name)
        self.clock.now += self.seconds


def test_every_round_runs_each_once_in_another_order() -> None:
    clock = Clock()
    racers = [Runner(name, clock, seconds) for name, seconds in (("a", 1.0), ("b", 2.0), ("c", 3.0))]
    times = race(racers, rounds=40, clock=clock)
    assert times == [[1.0] * 40, [2.0] * 40, [3.0] * 40]

    warm = WARM_RUNS * 3  # longer than the seconds that are asked for
    assert clock.ran[:warm] == ["a"] * 3 + ["b"] * 3 + ["c"] * 3
    rounds = [tuple(clock.ran[i : i + 3]) for i in range(warm, len(clock.ran), 3)]
    assert {tuple(sorted(order)) for order in rounds} == {("a", "b", "c")}
    assert len(set(rounds)) == 6

    again = Clock()
    race([Runner(n, again, s) for n, s in (("a", 1.0), ("b", 2.0), ("c", 3.0))], rounds=40, clock=again)
    assert again.ran == clock.ran
    other = Clock()
    race(
        [Runner(n, other, s) for n, s in (("a", 1.0), ("b", 2.0), ("c", 3.0))], rounds=40, clock=other, seed=1
    )
    assert other.ran != clock.ran


def test_fast_models_are_warmed_up_long_enough() -> None:
    clock = Clock()
    race([Runner("a", clock, 1 / 64)], rounds=1, clock=clock)
    assert len(clock.ran) == 32 + 1  # half a second, and the round


@pytest.mark.parametrize(("each", "rounds"), [(0.25, 20), (100.0, FEWEST)])
def test_seconds_are_for_all_models_together(each: float, rounds: int) -> None:
    clock = Clock()
    racers = [Runner("a", clock, each), Runner("b", clock, each)]
    times = race(racers, seconds=10.0, clock=clock)
    assert [len(some) for some in times] == [rounds, rounds]


def test_no_garbage_is_collected_meanwhile() -> None:
    seen = []

    class Watching(Runner):
        def run(self) -> None:
            super().run()
            seen.append(gc.isenabled())

    clock = Clock()
    race([Watching("a", clock, 1.0)], rounds=5, clock=clock)
    assert seen == [True] * 3 + [False] * 5
    assert gc.isenabled()


def test_progress_is_in_percents() -> None:
    clock, seen = Clock(), []
    race([Runner("a", clock, 1.0)], rounds=4, clock=clock, progress=lambda *step: seen.append(step))
    assert seen == [(0, 100), (25, 100), (50, 100), (75, 100)]


def test_ratios_are_taken_within_rounds() -> None:
    """The machine is three times slower in half of the rounds: each ratio is 0.5 nevertheless."""
    first = [1.0, 3.0] * 50
    second = [0.5, 1.5] * 50
    standing = Standing("b", "fake", second, first)
    assert standing.ratio == (0.5, 0.5, 0.5)
    assert standing.percentile(50) == 1.0  # while the medians are those of a mixture
    assert standing.throughput == pytest.approx(1.0)
    drifting = Standing("c", "fake", list(np.linspace(0.5, 1.5, 101)), [1.0] * 101)
    assert drifting.ratio == pytest.approx((1.0, 0.75, 1.25))
    assert drifting.to_dict()["p90"] == pytest.approx(1.4)


def test_the_table_and_the_report() -> None:
    first = Standing("a.onnx", "fake", [0.002] * 9 + [0.004], [0.002] * 9 + [0.004])
    first = Standing("a.onnx", "fake", first.times, first.times)
    second = Standing("b.onnx", "fake", [2e-5] * 10, first.times)
    standings = Standings((first, second), {"x": (1, 3, 8, 8)}, "a machine", ("look out",))
    heading, _, one, two, below, note = str(standings).splitlines()
    assert heading.split()[:7] == ["model", "by", "min", "p50", "p90", "p99", "runs/s"]
    assert one.split() == "a.onnx fake 2 ms 2 ms 2.2 ms 3.82 ms 454.5 1".split()  # noqa: SIM905
    assert two.split()[:4] == ["b.onnx", "fake", "20", "us"]
    assert two.endswith("0.010 (0.010 to 0.010)")
    assert below == "10 rounds, inputs x 1x3x8x8; a machine"
    assert note == "note: look out"
    report = standings.to_dict()
    assert report["rounds"] == 10
    assert report["models"][0]["ratio"] == 1.0
    assert report["models"][1]["ratio_quartiles"] == pytest.approx([0.01, 0.01])
    assert report["models"][1]["throughput"] == pytest.approx(50_000)
    assert report["inputs"] == {"x": [1, 3, 8, 8]}
