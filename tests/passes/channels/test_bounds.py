"""What is proven of each channel: bounds that hold for whatever a model is fed, and that are not too wide."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from bnfold.onnx_graph.file.loaded import load
from bnfold.onnx_graph.ops.activations import Function
from bnfold.onnx_graph.ops.interval import Bounds, collapsed
from bnfold.onnx_graph.ops.table import OPERATORS
from bnfold.onnx_graph.read import read
from bnfold.passes.channels.bounds import prove
from tests.onnx_graph.build import Build
from tests.onnx_graph.look import feeds, run
from tests.passes.channels.planted import Grower


def proven(g: Build, *tensors: str) -> list[Bounds]:
    """The bounds of tensors of a model."""
    graph = read(load(g.model()))
    facts = {tensor.name: bounds for tensor, bounds in prove(graph).items()}
    return [facts[tensor] for tensor in tensors]


def ends(bounds: Bounds) -> tuple[list[float], list[float]]:
    return bounds.lo.reshape(-1).tolist(), bounds.hi.reshape(-1).tolist()


def test_a_conv_of_bounded_channels_is_bounded_by_its_weights() -> None:
    g = Build()
    x = g.op("Clip", g.input("x", (1, 2, 4, 4)), g.const(0.0), g.const(6.0))
    w = g.const(np.array([[2.0, 1.0], [-1.0, 0.5], [0.0, 0.0]]).reshape(3, 2, 1, 1), "w")
    y = g.op("Conv", x, w, g.const(np.array([-18.0, 1.0, 0.25]), "b"))
    g.output(g.op("Relu", y, out="z"))
    whole, z = proven(g, y, "z")
    assert ends(whole) == ([-18.0, -5.0, 0.25], [0.0, 4.0, 0.25])
    assert ends(z) == ([0.0, 0.0, 0.25], [0.0, 4.0, 0.25])
    assert z.constant.reshape(-1).tolist() == [True, False, True]


@pytest.mark.parametrize(("pads", "low"), [(0, 3 - 9.0), (1, -9.0)])
def test_a_padded_window_may_see_zeros_in_place_of_a_tap(pads: int, low: float) -> None:
    g = Build()
    x = g.op("Clip", g.input("x", (1, 1, 4, 4)), g.const(1.0), g.const(3.0))
    w = g.const(np.array([1.0, 1, 1, 0, 0, 0, -1, -1, -1]).reshape(1, 1, 3, 3), "w")
    y = g.op("Conv", x, w, pads=[pads] * 4)
    g.output(y)
    [bounds] = proven(g, y)
    assert bounds.lo.item() == low
    assert bounds.hi.item() == -low


def test_a_weight_of_zero_hides_what_has_no_bounds() -> None:
    g = Build()
    w = g.normal((2, 3, 3, 3))
    w[1] = 0
    y = g.op("Conv", g.input("x", (1, 3, 4, 4)), g.const(w, "w"), g.const(np.array([1.0, 2.0]), "b"))
    g.output(y)
    assert ends(proven(g, y)[0]) == ([-math.inf, 2.0], [math.inf, 2.0])


def test_running_statistics_prove_nothing() -> None:
    """A running variance of zero says that a channel was constant in training."""
    g = Build()
    parts = [np.ones(2), np.zeros(2), np.zeros(2), np.array([0.0, 1.0])]
    x = g.op("Conv", g.input("x", (1, 3, 4, 4)), g.weight((2, 3, 1, 1), 3))
    y = g.op("BatchNormalization", x, *(g.const(part, "p") for part in parts))
    g.output(y)
    assert not proven(g, y)[0].constant.any()


PADS = np.array([0, 0, 1, 1, 0, 0, 1, 1])
Rule = Callable[[Build, str], str]
# what is made of a tensor x in [0, 6], and the bounds of it
RULES: dict[str, tuple[Rule, float, float]] = {
    "a sum": (lambda g, x: g.op("Add", x, g.op("Neg", x)), -6, 6),
    "a difference": (lambda g, x: g.op("Sub", x, g.const(1.5)), -1.5, 4.5),
    "a product": (lambda g, x: g.op("Mul", x, g.op("Sub", x, g.const(7.0))), -42, 0),
    "a quotient": (lambda g, x: g.op("Div", x, g.op("Add", g.op("Abs", x), g.const(2.0))), 0, 3),
    "a quotient by what may be zero": (lambda g, x: g.op("Div", x, g.op("Abs", x)), -math.inf, math.inf),
    "a maximum": (lambda g, x: g.op("Max", x, g.op("Sub", x, g.const(9.0))), 0, 6),
    "a minimum": (lambda g, x: g.op("Min", x, g.op("Sub", x, g.const(9.0))), -9, -3),
    "max pooling": (lambda g, x: g.op("MaxPool", x, kernel_shape=[3, 3], pads=[1] * 4), 0, 6),
    "average pooling": (lambda g, x: pooled(g, x), 1, 7),
    "counted padding": (lambda g, x: pooled(g, x, pads=[1] * 4, count_include_pad=1), 0, 7),
    "a mean": (lambda g, x: g.op("GlobalAveragePool", x), 0, 6),
    "a sum of 16": (lambda g, x: g.op("ReduceSum", x, integers(g, np.array([2, 3]))), 0, 96),
    "a norm": (lambda g, x: g.op("ReduceL2", x, integers(g, np.array([2, 3]))), 0, math.inf),
    "padding by 9": (lambda g, x: g.op("Pad", x, integers(g, PADS), g.const(9.0)), 0, 9),
    "padding by its edge": (lambda g, x: g.op("Pad", x, integers(g, PADS), mode="edge"), 0, 6),
    "a slope of -2": (lambda g, x: g.op("LeakyRelu", g.op("Sub", x, g.const(3.0)), alpha=-2.0), 0, 6),
    "a hard sigmoid": (lambda g, x: g.op("HardSigmoid", x, alpha=0.1, beta=0.2), 0.2, 0.8),
    "a softmax": (lambda g, x: g.op("Softmax", x, axis=1), 0, 1),
    "a linear resize": (lambda g, x: resized(g, x, "linear"), 0, 6),
    "a cubic resize": (lambda g, x: resized(g, x, "cubic"), -math.inf, math.inf),
    "a choice": (lambda g, x: g.op("Where", g.const(MASK, dtype="bool"), x, g.op("Neg", x)), -6, 6),
    "bytes": (lambda g, x: g.op("Cast", g.op("Cast", x, to=2), to=1), 0, 255),
    "an unknown operator": (lambda g, x: g.op("LpNormalization", x), -math.inf, math.inf),
}
MASK = np.array([[True], [False]] * 2)


def integers(g: Build, value: Any) -> str:
    return g.const(value, dtype="int64")


def pooled(g: Build, x: str, **how: Any) -> str:
    return g.op("AveragePool", g.op("Add", x, g.const(1.0)), kernel_shape=[2, 2], **how)


def resized(g: Build, x: str, mode: str) -> str:
    return g.op("Resize", x, "", g.const(np.array([1, 1, 2.0, 2])), mode=mode)


@pytest.mark.parametrize("rule", RULES)
def test_bounds(rule: str) -> None:
    make, low, high = RULES[rule]
    g = Build()
    y = make(g, g.op("Clip", g.input("x", (1, 2, 4, 4)), g.const(0.0), g.const(6.0)))
    g.output(y)
    [bounds] = proven(g, y)
    assert bounds.lo.min() == pytest.approx(low, abs=1e-7)
    assert bounds.hi.max() == pytest.approx(high, abs=1e-7)


FUNCTIONS = {op: record.bounds for op, record in OPERATORS.items() if isinstance(record.bounds, Function)}


@pytest.mark.parametrize(
    ("op", "attributes"), [*((op, {}) for op in FUNCTIONS), ("Gelu", {"approximate": "tanh"})]
)
def test_functions_hold_their_bounds_and_their_values(op: str, attributes: dict[str, Any]) -> None:
    """Of many intervals, against onnxruntime on a fine grid; at one point it is the value itself."""
    node = helper.make_node(op, ["x"], ["y"], **attributes)
    shape = ["n"]
    graph = helper.make_graph(
        [node], "f", *([helper.make_tensor_value_info(name, 1, shape)] for name in ("x", "y"))
    )
    opset = {"Swish": 24, "Gelu": 20}.get(op, 18)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    evaluator = "reference" if op == "Swish" else "onnxruntime"
    site: Any = read(load(model)).nodes[0].source
    rng = np.random.default_rng(0)
    for _ in range(50):
        low, high = np.sort(rng.uniform(-8, 8, 2))
        grid = np.linspace(low, high, 201, dtype=np.float32)
        [found] = run(model, {"x": grid}, evaluator)
        bounds = FUNCTIONS[op].image(site, Bounds(np.array([low]), np.array([high])))
        slack = 1e-5 * (1 + float(np.abs(found).max()))
        assert bounds.lo.item() <= found.min() + slack
        assert bounds.hi.item() >= found.max() - slack
        if FUNCTIONS[op].lowest is not None:  # as narrow as the grid can tell
            assert bounds.lo.item() >= found.min() - slack - (high - low) / 200
            assert bounds.hi.item() <= found.max() + slack
        point = FUNCTIONS[op].image(site, Bounds(np.array([low]), np.array([low])))
        assert point.lo.item() == point.hi.item() == pytest.approx(found[0], rel=1e-5, abs=1e-5)


def bounded(g: Build) -> str:
    return g.op("Clip", g.input("x", (1, 2, 4, 4)), g.const(0.0), g.const(6.0))


def pointwise(g: Build, x: str, rows: list[list[float]], bias: float = 0.0, **how: Any) -> str:
    w = np.array(rows)[:, :, None, None]
    return g.op("Conv", x, g.const(w, "w"), g.const(np.full(len(rows), bias), "b"), **how)


DIFFERENCE, BOTH = [[1.0, -1.0]], [[1.0, 0.0], [0.0, 1.0]]
# of a pair (x0 + x1, x0 + x1) in [0, 12], and of another tensor like it: what is made of both, and its bounds
TOGETHER: dict[str, tuple[Callable[[Build, str, str], str], float, float]] = {
    "a difference of equals": (lambda g, y, x: pointwise(g, y, DIFFERENCE, 0.5), 0.5, 0.5),
    "through a sum": (lambda g, y, x: pointwise(g, g.op("Add", y, x), DIFFERENCE), -6, 6),
    "through a sum and a scale": (
        lambda g, y, x: pointwise(g, g.op("Mul", g.op("Sub", y, x), g.const(2.0)), DIFFERENCE), -12, 12),
    "through a name": (lambda g, y, x: pointwise(g, g.op("Identity", y), DIFFERENCE), 0, 0),
    "into a window": (lambda g, y, x: g.op("Conv", y, g.const(WINDOW, "w")), -48, 48),
    "past every other place": (
        lambda g, y, x: pointwise(g, pointwise(g, y, BOTH, strides=[2, 2]), DIFFERENCE), -12, 12),
    "of two places": (
        lambda g, y, x: pointwise(g, g.op("Add", y, g.op("GlobalMaxPool", y)), DIFFERENCE), -24, 24),
    "behind a function": (lambda g, y, x: pointwise(g, g.op("Relu", y), DIFFERENCE), -12, 12),
}  # fmt: skip
WINDOW = np.stack([np.ones((1, 2, 2)), -np.ones((1, 2, 2))], 1)


@pytest.mark.parametrize("case", TOGETHER)
def test_layers_and_sums_are_one_linear_map(case: str) -> None:
    """Or are not, where they do not see the same place, or what is between is not linear."""
    make, low, high = TOGETHER[case]
    g = Build()
    x = bounded(g)
    z = make(g, pointwise(g, x, [[1.0, 1.0], [1.0, 1.0]]), x)
    g.output(z)
    assert [end.item() for end in proven(g, z)[0]] == [low, high]


def test_rows_and_columns_are_one_linear_map_too() -> None:
    g = Build()
    x = g.op("Sigmoid", g.input("x", (5, 2)))
    y = g.op("MatMul", x, g.const(np.array([[1.0, 1.0], [1.0, 1.0]]), "w"))
    z = g.op("Gemm", y, g.const(np.array([[1.0], [-1.0]]), "v"), g.const(np.array([0.25]), "c"), alpha=3.0)
    g.output(z)
    assert ends(proven(g, z)[0]) == ([0.25], [0.25])


def test_a_choice_by_a_mask_of_unknown_rank_lies_within_both() -> None:
    g = Build()
    conv = g.op("Conv", g.input("x", (1, 2, 3, 3)), g.const(np.zeros((4, 2, 1, 1))), g.const([1.0, 2, 3, 4]))
    mask = g.input("mask", (1, 1, 3, 3), "bool")
    g.output(g.op("Where", mask, conv, g.const(0.5)))
    model = g.model()
    model.graph.input[1].type.tensor_type.ClearField("shape")
    facts = {tensor.name: bounds for tensor, bounds in prove(read(load(model))).items()}
    found = facts[model.graph.output[0].name]
    np.testing.assert_array_equal(found.lo.reshape(-1), 0.5)
    np.testing.assert_array_equal(found.hi.reshape(-1), [1, 2, 3, 4])


def test_what_only_rounding_tells_apart_is_one_value() -> None:
    one = np.array([1.0, 1.0, 0.0, 1e-40, 0.0, 1e5])
    two = np.array([1.0 + 1e-8, 1.0 + 1e-6, 1e-40, 2e-40, 1e-30, 1e5])
    found = collapsed(Bounds(one, two), "float32")
    assert found.constant.tolist() == [True, False, True, True, False, True]
    assert found.lo[2:4].tolist() == [0.0, 0.0]
    assert not collapsed(Bounds(one, two), "float64").constant[:2].any()
    assert collapsed(Bounds(one, two), "float16").constant.tolist() == [True] * 5 + [
        False
    ]  # 1e5 is infinite there


def test_all_values_of_random_nets_lie_within_the_bounds() -> None:
    """Every tensor of the net becomes an output, and is looked at for inputs small and large."""
    narrow = 0
    for seed in range(60):
        model = Grower(seed).grow().model()
        graph = read(load(model))
        facts = {tensor.name: bounds for tensor, bounds in prove(graph).items()}
        names = [name for node in model.graph.node for name in node.output]
        del model.graph.output[:]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        for gain in (0.1, 1.0, 30.0):
            for name, value in zip(names, run(model, feeds(model, seed, gain)), strict=True):
                if name not in facts:
                    continue
                slack = 1e-4 * max(1.0, float(np.abs(value).max()))
                assert (value >= facts[name].lo - slack).all(), (seed, name)
                assert (value <= facts[name].hi + slack).all(), (seed, name)
                narrow += int(facts[name].constant.sum())
    assert narrow > 1000  # or this tests less than it claims
