"""Random graphs: rescaling by powers of two changes no bit, and half precision stays within its tolerance.

The number of graphs is small here; BNFOLD_GRAPHS=5000 runs more.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest

from bnfold.api.convert import convert
from bnfold.fold.absorb.absorb import absorb
from bnfold.fold.carry.spread import Conflict, State
from bnfold.fold.rescale.carry_scale import carry, commit
from bnfold.fold.solve import solve
from bnfold.onnx_graph.file.loaded import Loaded, load
from bnfold.onnx_graph.read import read
from bnfold.onnx_graph.run.evaluators import evaluate
from bnfold.onnx_graph.write import apply
from bnfold.options import Check
from bnfold.report.precision import PrecisionReport
from bnfold.verify.difference import TOLERANCES
from tests.onnx_graph.cases.random_graphs import random_model

pytestmark = pytest.mark.xdist_group("random graphs in half precision")
GRAPHS = int(os.environ.get("BNFOLD_GRAPHS", "160"))
BATCH = 40
TRIES = 8  # tensors of a graph that are rescaled at random
ANY = 1e9  # a tolerance that all pass: they are judged here
NEAR = 2e-6  # of the largest: float32 rounding, where an epsilon is rescaled
POWER = 16  # up to 2**16 and down to 2**-16


def folded(seed: int) -> Loaded:
    loaded = load(random_model(seed))
    graph = read(loaded)
    apply(loaded, graph, solve(graph).edits)
    return loaded


def feed(loaded: Loaded, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    shapes = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in loaded.proto.graph.input}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def disturbed(loaded: Loaded, seed: int) -> tuple[Loaded, int]:
    """The same function with tensors carried at sizes far from one, and how many."""
    rng, result, state = np.random.default_rng(seed), loaded.copy(), State()
    graph, moved = read(result), 0
    tensors = [t for t in graph.tensors if t.rank > 1 and t.constant is None and not t.fixed]
    for number in rng.permutation(len(tensors))[:TRIES]:
        shape, tensor = [1] * tensors[number].rank, tensors[number]
        if rng.random() < 0.7:
            shape[1] = tensor.shape[1]  # type: ignore
        try:
            commit(state, carry(state, tensor, 2.0 ** rng.integers(-POWER, POWER + 1, shape)))
            moved += 1
        except Conflict:
            continue
    apply(result, graph, absorb(graph, state))
    return result, moved


def judge(report: PrecisionReport, plain: Loaded, precision: str, x: dict[str, Any], seed: int) -> None:
    """Within the tolerance of the type, or not far from what it makes of the same graph, all in good range.

    (Some of the graphs divide by the deviation of a few numbers that are nearly equal.)
    """
    bad = [error for error in report.outputs if not error.max_rel <= TOLERANCES[report.precision].rtol]
    if not bad:
        return
    _, inherent = convert(plain, precision, Check(inputs=x, rtol=ANY), original=plain)
    known = {error.name: error.max_rel for error in inherent.convert_first}
    for error in bad:
        assert error.max_rel <= 4 * known[error.name], (seed, known, str(report))
    Seen.counts["ill-conditioned"] += 1


class Seen:
    counts: ClassVar[Counter[str]] = Counter()


@pytest.mark.parametrize("first", range(0, GRAPHS, BATCH))
def test_what_was_carried_away_comes_back(first: int) -> None:
    for seed in range(first, min(first + BATCH, GRAPHS)):
        plain = folded(seed)
        far, moved = disturbed(plain, seed)
        if not moved:
            continue
        x = feed(plain, seed)
        one, two = evaluate(plain, x)[0], evaluate(far, x)[0]
        for name in one:
            size = max(float(np.abs(one[name]).max()), 1e-3)
            np.testing.assert_allclose(two[name], one[name], 0, NEAR * size, err_msg=f"seed {seed}: {name}")
        Seen.counts["exact"] += all(np.array_equal(one[name], two[name]) for name in one)
        result, report = convert(far, "fp16", Check(inputs=x, rtol=ANY), original=far)
        onnx.checker.check_model(result.to_proto(), full_check=True)
        judge(report, plain, "fp16", x, seed)
        worst = max(error.max_rel for error in report.convert_first)
        Seen.counts["rescaled"] += bool(report.rescaled)
        Seen.counts["kept"] += bool(report.kept)
        Seen.counts["lost without"] += not worst <= TOLERANCES["float16"].rtol
        Seen.counts["graphs"] += 1


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("first", range(0, GRAPHS, BATCH))
def test_half_precision_stays_within_its_tolerance(first: int, precision: str) -> None:
    for seed in range(first, min(first + BATCH, GRAPHS)):
        plain = folded(seed)
        result, report = convert(plain, precision, Check(inputs=feed(plain, seed), rtol=ANY))
        judge(report, plain, precision, feed(plain, seed), seed)
        proto = result.to_proto()
        onnx.checker.check_model(proto, full_check=True)
        for value, old in zip(proto.graph.output, plain.proto.graph.output, strict=True):
            assert (value.name, value.type) == (old.name, old.type)
        if precision == "fp16":
            outputs, by = evaluate(result, feed(plain, seed))
            assert by.startswith("onnxruntime")
            assert all(np.isfinite(value).all() for value in outputs.values())


def test_the_graphs_show_what_rescaling_is_for() -> None:
    """The batches above may have run in another process."""
    if Seen.counts["graphs"] <= GRAPHS / 3:
        Seen.counts.clear()
        for first in range(0, GRAPHS, BATCH):
            test_what_was_carried_away_comes_back(first)
    assert Seen.counts["graphs"] > GRAPHS / 3
    assert Seen.counts["rescaled"] > GRAPHS / 20
    assert Seen.counts["kept"] > 0
    assert Seen.counts["ill-conditioned"] < GRAPHS / 20
    assert Seen.counts["exact"] > Seen.counts["graphs"] * 0.9
    assert Seen.counts["lost without"] > GRAPHS / 20
