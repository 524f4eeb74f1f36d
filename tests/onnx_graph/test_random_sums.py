"""Random sums of branches and rows of linear nodes: merged, they compute the same, and nothing grows.

BNFOLD_GRAPHS=5000 runs more of them than the test-suite does.
"""

from __future__ import annotations

import math
import os
from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import bnfold
from bnfold.errors import BnfoldError
from bnfold.fold.merge import noise
from bnfold.options import Check
from bnfold.verify.models import verify
from tests.onnx_graph.cases.random_sums import random_sums
from tests.onnx_graph.damage import damage
from tests.onnx_graph.look import difference, feeds, run

GRAPHS = int(os.environ.get("BNFOLD_GRAPHS", "400"))
NEAR = 1e-5  # of the largest output: float32 rounding through a dozen layers

# words of reasons that the graphs must reach, or they test less than they claim
REASONS = (
    "more multiplications as one node", "more multiplications or weights", "zero padding between them",
    "has a bias", "scaled on the way", "fewer nodes",
)  # fmt: skip


def multiplications(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> int:
    """Of all linear nodes in one run, from the sizes of what they give."""
    probed = onnx.ModelProto.FromString(model.SerializeToString())
    linear = [node for node in probed.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    if not linear:
        return 0
    del probed.graph.output[:]
    probed.graph.output.extend(onnx.ValueInfoProto(name=node.output[0]) for node in linear)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    total = 0
    for node, value in zip(linear, run(probed, feed), strict=True):
        weight = numpy_helper.to_array(stored[node.input[1]])
        each = math.prod(weight.shape[1:]) if node.op_type == "Conv" else weight.size // value.shape[-1]
        total += each * value.size
    return total


def test_random_sums_compute_the_same() -> None:
    reached: Counter[str] = Counter()
    unfit = 0
    for seed in range(GRAPHS):
        model = random_sums(seed).model()
        feed = feeds(model, seed)
        merged, report = bnfold.fold_onnx(model, verify=False)
        plain, _ = bnfold.fold_onnx(model, verify=False, merge_branches=False)
        onnx.checker.check_model(merged, full_check=True)
        reached.update(word for word in REASONS for apart in report.apart if word in apart.reason)
        reached.update(merge.op for merge in report.merged)
        nodes = len(plain.graph.node) - len(merged.graph.node)
        assert (nodes > 0) if report.merged else (nodes == 0), seed
        try:
            expected = run(model, feed)
        except Exception:  # a size that has no number got too small for a kernel
            unfit += 1
            continue
        if report.merged:
            assert multiplications(merged, feed) <= multiplications(plain, feed), seed
        if not all(value.any() for value in expected):
            continue  # a ReLU has cut all off
        if not difference(expected, run(merged, feed)) <= NEAR:  # rounding, or wrong? float64 tells
            check = verify(model, merged, Check(rtol=NEAR, inputs=feed))
            assert check.status == "passed", f"seed {seed}: {check}"
    assert unfit <= GRAPHS // 100
    missing = {*REASONS, "Conv", "Gemm", "MatMul"} - set(reached)
    assert not missing, reached


def test_what_rounding_leaves_apart_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Merges of some branches of a sum, of all, of none: what is allowed differs from graph to graph."""
    rng = np.random.default_rng(0)
    several = partly = alone = 0
    for seed in range(GRAPHS // 4):
        model = random_sums(seed).model()
        feed = feeds(model, seed)
        monkeypatch.setattr(noise, "ALLOWED", float(rng.uniform(-6, 2)))
        target = ("int8", "int8-per-tensor", "int4")[seed % 3]
        merged, report = bnfold.fold_onnx(model, verify=False, quantize_for=target)
        onnx.checker.check_model(merged, full_check=True)
        weighed = [line for line in report.apart if line.noise is not None]
        several += len(report.merged)
        alone += len(weighed)
        partly += any(merge.name in line.names for merge in report.merged for line in weighed)
        added = [merge.noise.added_db for merge in report.merged if merge.noise is not None]
        assert len(added) == len(report.merged)
        assert all(db <= noise.ALLOWED for db in added)
        try:
            expected = run(model, feed)
        except Exception:  # a size that has no number got too small for a kernel
            continue
        if all(value.any() for value in expected) and not difference(expected, run(merged, feed)) <= NEAR:
            check = verify(model, merged, Check(rtol=NEAR, inputs=feed))
            assert check.status == "passed", f"seed {seed}: {check}"
    assert min(several, alone, partly) > GRAPHS // 100, (several, alone, partly)


def test_damaged_sums_end_in_one_clear_error_or_a_model() -> None:
    ends, messages = {"folded": 0, "refused": 0}, []
    for seed in range(GRAPHS):
        model = damage(random_sums(seed).model(), seed)
        try:
            folded, report = bnfold.fold_onnx(model, verify=False)
        except BnfoldError as error:
            messages.append(str(error))
            ends["refused"] += 1
            continue
        ends["folded"] += 1
        if not report.merged:
            continue
        feed = feeds(model, seed)
        try:
            expected = run(model, feed)
        except Exception:  # what cannot run, computes nothing that could change
            continue
        worst = difference(expected, run(folded, feed)) if all(v.any() for v in expected) else 0.0
        assert worst <= NEAR or verify(model, folded, Check(rtol=NEAR, inputs=feed)).status == "passed", seed
    assert all(message and "\n" not in message for message in messages)
    assert min(ends.values()) > GRAPHS // 20, ends
