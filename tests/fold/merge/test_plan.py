"""What becomes one node, and beside each case the nearest one that stays; held against onnxruntime.

The cases are numbered as in the docstring of bnfold/fold/merge/plan.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest

import bnfold
from bnfold.errors import VerifyError
from bnfold.report.fold import Report
from tests.onnx_graph.build import Build
from tests.onnx_graph.look import difference, feeds, run

ROUNDING = 2e-6  # of the largest output: a few float32 operations
IMAGE = (2, 6, 9, 11)
LINEAR = ("Conv", "Gemm", "MatMul")


class Case(NamedTuple):
    """A network, how many linear nodes and how many others are left of it, and words of the reason."""

    name: str
    build: Callable[[Build, str], str]
    linear: int
    others: int
    reason: str = ""
    shape: tuple[Any, ...] = IMAGE


def add(g: Build, *parts: str) -> str:
    y = parts[0]
    for part in parts[1:]:
        y = g.op("Add", y, part)
    return y


def per_channel(g: Build, count: int = 6) -> str:
    return g.const(g.normal((count, 1, 1)), "gamma")


def asymmetric(g: Build, x: str) -> str:
    """The taps of a 2 x 2 at (0, 0), (0, 1), (1, 0), (1, 1) of the place itself."""
    return g.op("Conv", x, g.weight((6, 6, 2, 2), 24), pads=[0, 0, 1, 1])


def other(g: Build, x: str) -> str:
    return g.op("Tanh", x)


def repmixer(g: Build, x: str) -> str:
    mixed = add(g, g.conv(x, 6, 3, group=6, pads=1), g.conv(x, 6, 1, group=6), g.bn(x))
    return add(g, x, g.op("Mul", per_channel(g), g.op("Sub", mixed, g.bn(x))))


def row(first: dict[str, Any], second: dict[str, Any], inner: int = 6) -> Callable[[Build, str], str]:
    return lambda g, x: g.conv(g.conv(x, inner, **first), 6, **second)


def strided(s: int, t: int) -> Callable[[Build, str], str]:
    return lambda g, x: add(
        g, g.conv(x, 6, 3, pads=1, strides=[s, s]), g.conv(x, 6, 1, strides=[t, t] if t > 1 else [1, 1])
    )


def grouped(a: int, b: int, k: int = 3) -> Callable[[Build, str], str]:
    return lambda g, x: add(g, g.conv(x, 6, 3, group=a, pads=1), g.conv(x, 6, k, group=b, pads=k // 2))


def gemms(g: Build, x: str) -> str:
    a, b = g.gemm(x, 5, (5,), transB=1, alpha=0.5), g.gemm(x, 5, (1, 5), beta=2.0)
    return g.op("Div", g.op("Add", a, b), g.const(2.0))


FLAT: tuple[Any, ...] = (3, 6)
CASES = [
    # 1: where the taps look
    Case("3x3 + 1x1", lambda g, x: add(g, g.conv(x, 8, 3, pads=1), g.conv(x, 8)), 1, 0),
    Case("5x5 + 3x3 + 1x1", lambda g, x: add(g, *(g.conv(x, 8, k, pads=k // 2) for k in (3, 5, 1))), 1, 0),
    Case("dilated 3x3 + 1x1", lambda g, x: add(
        g, g.conv(x, 8, 3, pads=2, dilations=[2, 2]), g.conv(x, 8)), 1, 0),
    Case("two grids of dilation", lambda g, x: add(
        g, g.conv(x, 6, 3, pads=2, dilations=[2, 2]), g.conv(x, 6, 3, pads=1)), 2, 1, "more multiplications"),
    Case("2x2 padded behind + 1x1", lambda g, x: add(g, asymmetric(g, x), g.conv(x, 6)), 1, 0),
    Case("SAME_UPPER 2x2 + 1x1", lambda g, x: add(
        g, g.conv(x, 6, 2, auto_pad="SAME_UPPER"), g.conv(x, 6)), 1, 0, "", ("n", 6, "h", "w")),
    Case("1x3 + 3x1", lambda g, x: add(
        g, g.op("Conv", x, g.weight((6, 6, 1, 3), 18), pads=[0, 1, 0, 1]),
        g.op("Conv", x, g.weight((6, 6, 3, 1), 18), pads=[1, 0, 1, 0])), 2, 1, "more multiplications"),
    Case("1x3 + 3x1 + 3x3", lambda g, x: add(
        g, g.op("Conv", x, g.weight((6, 6, 1, 3), 18), pads=[0, 1, 0, 1]), g.conv(x, 6, 3, pads=1),
        g.op("Conv", x, g.weight((6, 6, 3, 1), 18), pads=[1, 0, 1, 0])), 1, 0),
    Case("unpadded 3x3s", lambda g, x: add(g, g.conv(x, 6, 3), g.conv(x, 6, 3)), 1, 0),
    Case("equal strides", strided(2, 2), 1, 0),
    Case("equal strides, any size", strided(2, 2), 1, 0, "", ("n", 6, "h", "w")),
    Case("2x2 and 1x1 with stride 2 on 8 pixels", lambda g, x: add(
        g, g.conv(x, 6, 2, strides=[2, 2]), g.conv(x, 6, strides=[2, 2])), 1, 0, "", (2, 6, 8, 8)),
    Case("one axis or three", lambda g, x: add(
        g, g.conv(x, 6, 3, pads=1), g.conv(x, 6)), 1, 0, "", (2, 6, 9)),
    Case("three axes", lambda g, x: add(g, g.conv(x, 6, 3, pads=1), x), 1, 0, "", (1, 6, 5, 4, 6)),
    # 2: groups
    Case("groups 2 and 6", grouped(2, 6), 1, 0),
    Case("groups 1 and 3, 1x1", grouped(1, 3, 1), 1, 0),
    Case("groups 2 and 3", grouped(2, 3), 2, 1, "more multiplications"),
    Case("depthwise + full 1x1", grouped(6, 1, 1), 2, 1, "more multiplications"),
    Case("depthwise + full 3x3", grouped(6, 1), 1, 0),
    # 3: the tensor itself
    Case("3x3 + x", lambda g, x: add(g, g.conv(x, 6, 3, pads=1), x), 1, 0),
    Case("grouped 3x3 + batch norm of x", lambda g, x: add(
        g, g.conv(x, 6, 3, group=2, pads=1), g.bn(x)), 1, 0),
    Case("x + x", lambda g, x: add(g, g.bn(x), x), 0, 2),
    Case("with other channels", lambda g, x: add(g, g.conv(x, 1, 3, pads=1), x), 1, 1),
    Case("unpadded 1x1 + x cut", lambda g, x: add(g, g.conv(x, 6), g.op("Relu", x)), 1, 2),
    Case("only aside of the place", lambda g, x: add(
        g, g.op("Conv", x, g.weight((6, 6, 2, 2), 24), pads=[2, 2, 0, 0], dilations=[2, 2]), x), 1, 0),
    Case("not at the place itself", lambda g, x: add(
        g, g.op("Conv", x, g.weight((6, 6, 2, 2), 24), pads=[1, 1, 1, 1], dilations=[2, 2]), x),
        1, 1, "more multiplications"),
    # 4: maps on the way
    Case("RepMixer", repmixer, 1, 0),
    Case("layer scales, Neg, Sub", lambda g, x: g.op(
        "Sub", g.op("Mul", g.conv(x, 6, 3, pads=1), per_channel(g)), g.op("Neg", g.conv(x, 6))), 1, 0),
    Case("Mean of three", lambda g, x: g.op("Mean", g.conv(x, 6), x, g.conv(x, 6, 3, pads=1)), 1, 0),
    Case("a batch norm behind the sum", lambda g, x: g.bn(add(g, x, g.conv(x, 6, 3, pads=1))), 1, 0),
    Case("a map along another axis", lambda g, x: add(
        g, g.op("Mul", g.conv(x, 6), g.const(g.normal((11,)))), g.conv(x, 6)), 2, 2),
    # 6: what else is added
    Case("x + conv(x) + tanh", lambda g, x: add(g, x, other(g, x), g.conv(x, 6, 3, pads=1)), 1, 2),
    Case("conv of another tensor, scaled", lambda g, x: g.op("Mul", per_channel(g), add(
        g, g.conv(x, 6), g.op("Sub", x, g.conv(other(g, x), 6)))), 2, 2),
    Case("another tensor, scaled", lambda g, x: g.op("Sub", g.conv(x, 6), g.op(
        "Add", other(g, x), g.conv(x, 6))), 2, 3, "scaled on the way"),
    Case("two tensors, two nodes each", lambda g, x: add(
        g, g.conv(x, 6), g.conv(y := other(g, x), 6), g.conv(x, 6, 3, pads=1), g.conv(y, 6)), 2, 2),
    Case("two tensors, one node each", lambda g, x: add(g, g.conv(x, 6), g.conv(other(g, x), 6)), 2, 2),
    # 7: products
    Case("two heads, halved", gemms, 1, 0, "", FLAT),
    Case("x W + transposed x V", lambda g, x: add(
        g, g.gemm(x, 6, (6,)), g.gemm(x, 6, (6,), transA=1)), 2, 1, "different axes", (6, 6)),
    Case("a bias for each row", lambda g, x: add(
        g, g.gemm(x, 6, (6, 1)), g.gemm(x, 6, (6,))), 2, 1, "", (6, 6)),
    Case("x + x W", lambda g, x: add(g, x, g.gemm(x, 6, (6,))), 1, 0, "", FLAT),
    Case("x + W x", lambda g, x: add(g, x, g.matmul(x, 4, left=True)), 1, 0, "", (2, 4, 6)),
    Case("x W + V x", lambda g, x: add(g, g.matmul(x, 6), g.matmul(x, 4, left=True)), 2, 1, "", (2, 4, 6)),
    Case("MatMul + MatMul with a bias", lambda g, x: add(
        g, g.matmul(x, 6, bias=True), g.matmul(x, 6), x), 1, 1, "", (2, 4, 6)),
    # 8 to 10: in a row
    Case("1x1, wide, then 3x3", row({}, {"k": 3}, 24), 1, 0),
    Case("1x1 without bias, wide, then padded 3x3", row({"bias": False}, {"k": 3, "pads": 1}, 24), 1, 0),
    Case("1x1, wide, then padded 3x3", row({}, {"k": 3, "pads": 1}, 24), 2, 0, "has a bias"),
    Case("padded 3x3, then 1x1", row({"k": 3, "pads": 1}, {}, 24), 1, 0),
    Case("3x3, then padded 3x3", row({"k": 3, "bias": False}, {"k": 3, "pads": 1}), 2, 0, "zero padding"),
    Case("depthwise 2, then 2", row(
        {"k": 2, "group": 6}, {"k": 2, "group": 6}), 2, 0, "more multiplications"),
    Case("2, then 2, along one axis", row({"k": 2, "pads": 1}, {"k": 2}), 1, 0, "", (2, 6, 12)),
    Case("strides multiply", row({"k": 3, "pads": 1, "strides": [2, 2]}, {"strides": [2, 2]}, 24), 1, 0),
    Case("stride between", row({"strides": [2, 2], "bias": False}, {"k": 3, "pads": 1}, 40), 1, 0),
    Case("a bottleneck", row({}, {}, 2), 2, 0, "more multiplications"),
    Case("depthwise, then 1x1", row({"k": 3, "group": 6}, {}), 2, 0, "more multiplications"),
    Case("grouped, then grouped", row({"group": 2, "k": 3}, {"group": 2}, 24), 1, 0),
    Case("three in a row", lambda g, x: g.conv(g.conv(g.conv(x, 24), 32), 6), 1, 0),
    Case("Gemm, then Gemm", lambda g, x: g.gemm(g.gemm(x, 20, (20,)), 5, (5,), transB=1), 1, 0, "", FLAT),
    Case("Gemm, then Gemm, narrow", lambda g, x: g.gemm(g.gemm(x, 2, (2,)), 6, (6,)), 2, 0, "more", FLAT),
    Case("in a row, then beside", lambda g, x: add(
        g, g.conv(g.conv(x, 24, bias=False), 6, 3, pads=1), g.conv(x, 6), x), 1, 0),
]  # fmt: skip


def check(g: Build, build: Callable[[Build, str], str], shape: Any, seed: int = 0) -> tuple[Any, Report]:
    """The network between two nodes that nothing passes, folded, and held against what it was."""
    x = g.op("Sigmoid", g.input("x", shape))
    g.output(g.op("Sigmoid", build(g, x)))
    model = g.model()
    before = model.SerializeToString()
    folded, report = bnfold.fold_onnx(model)
    assert model.SerializeToString() == before, "the input was changed"
    onnx.checker.check_model(folded, full_check=True)
    feed = feeds(model, seed)
    assert difference(run(model, feed), run(folded, feed)) < ROUNDING
    assert report.verification is None or report.verification.ok
    return folded, report


def counted(model: onnx.ModelProto) -> tuple[int, int]:
    """Linear nodes, and others but for the two around all."""
    ops = Counter(node.op_type for node in model.graph.node)
    linear = sum(ops[op] for op in LINEAR)
    return linear, ops.total() - linear - 2


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(case: Case) -> None:
    folded, report = check(Build(seed=len(case.name)), case.build, case.shape)
    assert counted(folded) == (case.linear, case.others), report
    if case.reason:
        assert any(case.reason in apart.reason for apart in report.apart), report.apart
    for merge in report.merged:
        assert merge.name not in merge.replaces
        assert 0 < merge.multiplications_after <= merge.multiplications_before
    assert not {e.name for e in report.kept} & {name for merge in report.merged for name in merge.replaces}


def test_places_that_may_differ() -> None:  # 1
    for size, linear in ((8, 1), ("h", 2)):  # an odd number of rows would give another number of outputs
        g = Build()
        x = g.input("x", (1, 6, size, 8))
        g.output(add(g, g.conv(x, 6, 2, strides=[2, 2]), g.conv(x, 6, strides=[2, 2])))
        folded, report = bnfold.fold_onnx(g.model(), verify=False)
        assert sum(node.op_type == "Conv" for node in folded.graph.node) == linear
        reason = "do not look at the same places: their pads do not match their kernels"
        assert [apart.reason for apart in report.apart] == [reason] * (linear - 1)


def twice(g: Build, x: str) -> tuple[str, str, str]:
    a, b = g.conv(x, 6, 3, pads=1, name="a"), g.conv(x, 6, name="b")
    return a, b, add(g, a, b)


def left(g: Build) -> int:
    return counted(bnfold.fold_onnx(g.model(), verify=False)[0])[0]


def test_what_is_between_has_one_reader_and_is_no_output() -> None:  # 5
    for reads in ("nobody", "a node", "the graph"):
        g = Build()
        a, _, y = twice(g, g.input("x", IMAGE))
        g.output(y)
        if reads == "a node":
            g.output(g.op("Relu", a))
        elif reads == "the graph":
            g.output(a)
        assert left(g) == (1 if reads == "nobody" else 2), reads


def test_weights_are_known_and_may_be_changed() -> None:  # 5
    g = Build()
    *_, y = twice(g, g.input("x", IMAGE))
    g.output(y)
    assert left(g) == 1
    g.expose("b_weight")  # the caller may override it
    assert left(g) == 2
    g = Build()
    x, w = g.input("x", IMAGE), g.input("w", (6, 6, 1, 1))
    g.output(add(g, g.conv(x, 6, 3, pads=1), g.op("Conv", x, w)))
    assert left(g) == 2


def test_shared_weights_are_copied_or_stay() -> None:
    g = Build()
    x = g.input("x", IMAGE)
    w = g.weight((6, 6, 3, 3), 54, "w")
    y = add(g, g.op("Conv", x, w, pads=[1, 1, 1, 1], name="a"), x)
    g.output(g.op("Conv", g.op("Relu", y), w, name="b"))
    model, feed = g.model(), feeds(g.model(), 0)
    for shared, nodes in (("duplicate", 0), ("skip", 1), ("error", 1)):
        folded, _ = bnfold.fold_onnx(model, shared=shared)
        assert sum(node.op_type == "Add" for node in folded.graph.node) == nodes
        assert difference(run(model, feed), run(folded, feed)) < ROUNDING


def test_one_weight_for_all_branches() -> None:
    g = Build()
    x, w = g.input("x", IMAGE), g.weight((6, 6, 3, 3), 54, "w")
    g.output(add(g, *(g.op("Conv", x, w, pads=[1, 1, 1, 1]) for _ in range(3))))
    model, feed = g.model(), feeds(g.model(), 0)
    folded, report = bnfold.fold_onnx(model)
    (merge,) = report.merged
    assert merge.multiplications_before == 3 * merge.multiplications_after == 3 * 2 * 99 * 6 * 6 * 9
    assert len(folded.graph.node) == 1
    assert difference(run(model, feed), run(folded, feed)) < ROUNDING


def test_a_weight_that_another_node_reads_as_data() -> None:
    g = Build()
    x, w = g.input("x", (3, 6)), g.weight((6, 18), 6, "w")
    g.op("MatMul", g.op("MatMul", x, w), g.weight((18, 6), 18))  # read by nobody
    g.output(g.op("Relu", w))
    model, feed = g.model(), feeds(g.model(), 0)
    assert difference(run(model, feed), run(bnfold.fold_onnx(model)[0], feed)) == 0


def test_sums_in_another_type_stay() -> None:
    for kind, linear in ((1, 1), (11, 2)):  # a Cast to float32 is none, one to float64 is
        g = Build()
        x = g.input("x", IMAGE)
        parts = [g.op("Cast", g.conv(x, 6, k, pads=k // 2), to=kind) for k in (1, 3)]
        g.output(add(g, *parts))
        assert left(g) == linear


def test_a_map_that_is_skipped_stays() -> None:  # 5
    g = Build()
    x = g.input("x", IMAGE)
    g.output(add(g, g.conv(x, 6, 3, pads=1), g.bn(x, name="stays")))
    assert {node.op_type for node in bnfold.fold_onnx(g.model())[0].graph.node} == {"Conv"}
    folded, report = bnfold.fold_onnx(g.model(), skip=["stays"])
    assert {node.op_type for node in folded.graph.node} == {"Conv", "BatchNormalization", "Add"}
    assert not report.merged


def test_nodes_of_a_body_stay_there() -> None:  # 5
    for inside in (True, False):
        g = Build()
        x, which = g.input("x", IMAGE), g.input("which", (), "bool")
        outer = g.conv(x, 6, 3, pads=1)
        bodies = []
        for _ in range(2):
            body = g.body()
            conv = body.conv(x, 6, 3, pads=1) if inside else outer
            body.output(body.op("Add", conv, body.conv(x, 6)))
            bodies.append(body.graph())
        y = g.op("If", which, then_branch=bodies[0], else_branch=bodies[1])
        g.output(g.op("Relu", y))
        model, feed = g.model(), feeds(g.model(), 0)
        folded, report = bnfold.fold_onnx(model)
        assert difference(run(model, feed), run(folded, feed)) < ROUNDING
        assert len(report.merged) == (2 if inside else 0)


def test_a_number_that_leaves_its_type_keeps_the_nodes_apart() -> None:  # 11
    for size, linear in ((1.0, 1), (4e4, 2)):
        g = Build(dtype="float16")
        x = g.op("Sigmoid", g.input("x", IMAGE))
        weights = [g.const(np.full((6, 6, 1, 1), size), "w") for _ in range(2)]
        g.output(add(g, *(g.op("Conv", x, w) for w in weights)))
        folded, report = bnfold.fold_onnx(g.model(), verify=False)
        assert counted(folded)[0] == linear
        assert [apart.reason for apart in report.apart if "overflow float16" in apart.reason] == (
            [] if linear == 1 else ["a weight of channel 0 would overflow float16 (8e+04)"]
        )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_types(dtype: str) -> None:  # 11
    g = Build(22 if dtype == "bfloat16" else 18, dtype=dtype)
    g.output(repmixer(g, g.input("x", IMAGE)))
    model = g.model()
    folded, report = bnfold.fold_onnx(model)
    assert counted(folded)[0] == 1
    assert {t.data_type for t in folded.graph.initializer} == {t.data_type for t in model.graph.initializer}
    assert report.verification is not None
    assert report.verification.status == "passed"


def test_old_opsets() -> None:
    for opset in (6, 7, 9, 13):
        g = Build(opset)
        x = g.input("x", IMAGE)
        g.output(add(g, g.conv(x, 6, 3, pads=1), x, g.op("Tanh", x)))
        model, feed = g.model(), feeds(g.model(), 0)
        folded, _ = bnfold.fold_onnx(model)
        assert [node.op_type for node in folded.graph.node].count("Add") == 1
        evaluator = "onnxruntime" if opset > 6 else "reference"
        assert difference(run(model, feed, evaluator), run(folded, feed, evaluator)) < ROUNDING


def test_it_can_be_left_out() -> None:
    g = Build()
    *_, y = twice(g, g.input("x", IMAGE))
    g.output(y)
    folded, report = bnfold.fold_onnx(g.model(), merge_branches=False)
    assert len(folded.graph.node) == 3
    assert report.merged == report.apart == []
    assert report.notes == ["nothing to fold: the model is unchanged"]


def test_the_report() -> None:
    g = Build()
    x = g.input("x", IMAGE)
    y = g.op("Relu", add(g, g.conv(x, 6, 3, pads=1, name="wide"), g.bn(x, name="norm")))
    g.output(g.conv(g.conv(y, 2, name="in"), 6, name="out"))
    _, report = bnfold.fold_onnx(g.model())
    (merge,) = report.merged
    places = 2 * 9 * 11
    assert merge._asdict() == {
        "name": "wide",
        "op": "Conv",
        "replaces": ("norm", "add"),
        "multiplications_before": places * (6 * 6 * 9 + 6),
        "multiplications_after": places * 6 * 6 * 9,
        "noise": merge.noise,
    }
    assert merge.noise is not None
    (entry,) = report.entries
    assert (entry.outcome, entry.into, entry.blocked_by) == ("folded", ("wide",), "")
    assert entry.reason == "merged with the branches beside it"
    (apart,) = report.apart
    assert apart.names == ("in", "out")
    assert "7,128 and 36, and apart 4,752 and 24" in apart.reason
    assert "wide  Conv      65,340 -> 64,152  norm, add\n1 linear node does the work of 3\n" in str(report)
    assert report.to_dict()["merged"][0]["replaces"] == ("norm", "add")


def test_the_check_tells_a_merge_from_a_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    from bnfold.fold.merge import branches

    right = branches.bias_of
    monkeypatch.setattr(branches, "bias_of", lambda role, n: right(role, n) + 1)
    g = Build()
    y = g.op("Relu", g.bn(g.conv(g.input("x", IMAGE), 6)))
    y = g.op("Relu", add(g, g.conv(y, 6, 3, pads=1, bias=False, name="a"), y))
    g.output(add(g, g.conv(y, 6, 3, pads=1, name="b"), y))
    with pytest.raises(VerifyError, match="no fold broke it, but the merging of branches into a did"):
        bnfold.fold_onnx(g.model(), check="run")
    with pytest.raises(VerifyError, match="add is wrong, a part of the merging of branches into a"):
        bnfold.fold_onnx(g.model(), check="proof")
