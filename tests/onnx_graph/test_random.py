"""Random graphs: what is folded computes the same, nothing grows, and every kind of fold and refusal occurs.

The number of graphs is small here; BNFOLD_GRAPHS=5000 runs more.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import ClassVar

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnfold.fold.carry.spread import ODD_SHAPES
from bnfold.fold.roles import Affine
from bnfold.fold.solve import RULES, solve
from bnfold.onnx_graph.file.loaded import load
from bnfold.onnx_graph.read import read
from bnfold.onnx_graph.write import apply
from bnfold.verify.models import verify
from tests.onnx_graph.cases.random_graphs import random_model

pytestmark = pytest.mark.xdist_group("random graphs, folded")
GRAPHS = int(os.environ.get("BNFOLD_GRAPHS", "400"))
NEAR = 2e-5  # of the largest output: float32 rounding through a dozen layers; beyond it float64 is asked
BATCH = 50

# kinds of folds and words of refusals that the graphs must reach, or they test less than they claim
FOLDS = (
    "scale back, shift back", "scale forward, shift forward", "scale back, shift forward",
    "scale forward, shift back",
    "zero scale back", "zero scale forward", "rolled back", "evicted",
)  # fmt: skip
REASONS = (
    "graph input", "graph output", "padding", "negative scale", "does not pass a shift",
    "zero scale", "is not linear",
    "two different changes", "product", "a shift", "sums over an axis", "closed", "needs the same change",
)  # fmt: skip


def run(model: onnx.ModelProto) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    rng = np.random.default_rng(1)
    feed = {i.name: rng.standard_normal(i.shape).astype(np.float32) for i in session.get_inputs()}
    return [np.asarray(value) for value in session.run(None, feed)]


def apart(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    worst = 0.0
    for x, y in zip(a, b, strict=True):
        assert x.shape == y.shape
        worst = max(worst, float(np.abs(x - y).max() / max(np.abs(x).max(), 1e-3)))
    return worst


class Seen:
    """What the graphs have reached so far, for the last test."""

    folds: ClassVar[Counter[str]] = Counter()
    reasons: ClassVar[Counter[str]] = Counter()
    roles: ClassVar[Counter[type]] = Counter()


@pytest.mark.parametrize("first", range(0, GRAPHS, BATCH))
def test_random_graphs(first: int) -> None:
    for seed in range(first, min(first + BATCH, GRAPHS)):
        model = random_model(seed)
        before = model.SerializeToString()
        loaded = load(model)
        result = loaded.copy()
        graph = read(result)
        plan = solve(graph)
        apply(result, graph, plan.edits)
        folded = result.to_proto()
        assert model.SerializeToString() == before
        Seen.folds += plan.ways
        Seen.folds["evicted"] += plan.evicted
        Seen.roles.update(type(node.role) for node in graph.nodes)
        for entry in plan.entries:
            Seen.reasons.update(word for word in REASONS if entry.outcome == "kept" and word in entry.reason)
            assert entry.outcome == "folded" or (entry.reason and entry.blocked_by), (seed, entry)
            assert ODD_SHAPES not in entry.reason, (seed, entry)  # the shapes are right here
        if not plan.order:
            assert folded.SerializeToString() == before, seed
            continue
        onnx.checker.check_model(folded, full_check=True)
        removed = sum(isinstance(n.role, Affine) for n in graph.nodes)
        assert len(folded.graph.node) <= len(model.graph.node), seed
        assert removed >= len(plan.order)
        error = apart(run(model), run(folded))
        if error > NEAR:  # rounding, or wrong? float64 tells
            check = verify(model, folded)
            assert check.status == "passed", f"seed {seed}: {error:.2g}\n{check}"


def test_the_graphs_reach_everything() -> None:
    """The batches above may have run in another process: then a plan is made for every graph here."""
    if not Seen.roles or Seen.folds.total() < GRAPHS:
        for seed in range(max(GRAPHS, 400)):
            graph = read(load(random_model(seed)))
            plan = solve(graph)
            Seen.folds += plan.ways
            Seen.folds["evicted"] += plan.evicted
            Seen.roles.update(type(node.role) for node in graph.nodes)
            for entry in plan.entries:
                Seen.reasons.update(
                    word for word in REASONS if entry.outcome == "kept" and word in entry.reason
                )
    assert not [kind for kind in FOLDS if not Seen.folds[kind]], Seen.folds
    assert not [word for word in REASONS if not Seen.reasons[word]], Seen.reasons
    # onnx's evaluator takes seconds for a DeformConv (Sampled): the patterns have it
    assert [role.__name__ for role in RULES["scale"] if not Seen.roles[role]] == ["Sampled"]


@settings(max_examples=int(os.environ.get("BNFOLD_EXAMPLES", "60")), deadline=None, derandomize=True)
@given(seed=st.integers(min_value=1 << 20, max_value=1 << 40), steps=st.integers(2, 40))
def test_any_graph_computes_the_same_folded(seed: int, steps: int) -> None:
    """Hypothesis chooses graphs of other sizes, and shrinks one that fails."""
    model = random_model(seed, steps)
    result = load(model)
    graph = read(result)
    plan = solve(graph)
    apply(result, graph, plan.edits)
    folded = result.to_proto()
    if plan.order and apart(run(model), run(folded)) > NEAR:
        check = verify(model, folded)
        assert check.status == "passed", str(check)
