"""Rounding and faults: which is which, at which tolerance."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from onnx import helper

from bnfold.onnx_graph.file.loaded import load
from bnfold.onnx_graph.run.inputs import near
from bnfold.onnx_graph.run.side_by_side import Feeds
from bnfold.options import Check
from bnfold.report.verification import OutputError
from bnfold.verify import difference
from bnfold.verify.difference import TOLERANCES, Strays, Tolerance, Truth, compare, excuse, excuse_by, strays
from bnfold.verify.models import verify
from tests.onnx_graph.run.test_evaluators import model, value
from tests.verify.test_models import chain


def ill_conditioned(order: list[int], spoiled: float = 0.0) -> onnx.ModelProto:
    """sum(k_i * x_i) of huge numbers that nearly cancel, added in some order."""
    rng = np.random.default_rng(2)
    k = rng.standard_normal(32).astype(np.float32) * 1e4
    # The exact sum of k is tiny beside its terms.
    k[-1] = -k[:-1].astype(np.float64).sum()
    nodes, last = (
        [
            helper.make_node("Mul", ["x", "k"], ["p"]),
            helper.make_node("Split", ["p"], [f"q{i}" for i in range(32)], num_outputs=32),
        ],
        "",
    )
    for i, j in enumerate(order):
        if last:
            nodes.append(helper.make_node("Add", [last, f"q{j}"], [f"a{i}"]))
        last = f"a{i}" if last else f"q{j}"
    nodes.append(helper.make_node("Add", [last, "e"], ["y"]))
    return model(nodes, [value("x", [32])], [value("y", [1])], {"k": k, "e": np.array([spoiled], np.float32)})


def test_rounding_of_the_original_is_no_fault_of_the_fold():
    x = {"x": np.ones(32, np.float32)}
    orders = [list(range(32)), list(range(31, -1, -1))]
    results = [
        verify(ill_conditioned(orders[i]), ill_conditioned(orders[1 - i]), Check(inputs=x)) for i in (0, 1)
    ]
    # Of two ways to round, one is worse; at least where the better is judged by the worse, it must pass.
    passed = [r for r in results if r.status == "passed"]
    assert passed
    assert all(r.outputs[0].max_rel > 1e-5 for r in results)
    assert all(r.outputs[0].rounding and "the original by" in r.outputs[0].note for r in passed)
    assert all("passed, y but for rounding" in str(r) for r in passed)
    assert all(r.to_dict()["outputs"][0]["rounding"] for r in passed)
    assert (
        verify(ill_conditioned(orders[0]), ill_conditioned(orders[1], 1.0), Check(inputs=x)).status
        == "failed"
    )


ORDERS = ([3, 9, 0, 12, 5, 14, 1, 7, 10, 2, 15, 8, 4, 11, 6, 13], list(range(15, -1, -1)))


def noisy(order: list[int], typ: type = np.float32) -> onnx.ModelProto:
    """A sum of 16 large numbers in some order, less the same sum in another: rounding, and a little of x."""
    k = np.random.default_rng(2).standard_normal(16).astype(typ) * typ(1e4 if typ is np.float32 else 1e2)

    def total(order: list[int], to: str) -> list[onnx.NodeProto]:
        steps = [(f"q{order[0]}", f"q{j}", f"{to}{j}") for j in order[1:]]
        steps = [(steps[i - 1][2] if i else a, b, out) for i, (a, b, out) in enumerate(steps)]
        return [helper.make_node("Add", [a, b], [out]) for a, b, out in steps]

    nodes = [helper.make_node("Mul", ["x", "k"], ["p"])]
    nodes.append(helper.make_node("Split", ["p"], [f"q{i}" for i in range(16)], axis=1, num_outputs=16))
    nodes += [*total(order, "a"), *total(list(range(16)), "b")]
    nodes.append(helper.make_node("Sub", [f"a{order[-1]}", "b15"], ["d"]))
    nodes.append(helper.make_node("Mul", ["q0", "e"], ["s"]))
    nodes.append(helper.make_node("Add", ["d", "s"], ["y"]))
    weights = {"k": k, "e": typ(1e-4 if typ is np.float32 else 1e-2)}
    code = helper.np_dtype_to_tensor_dtype(np.dtype(typ))
    return model(nodes, [value("x", [4, 16], code)], [value("y", [4, 1], code)], weights)


def refused(seeds: int, given: bool, typ: type = np.float32) -> int:
    """Two ways to round, neither better: how often either is refused."""
    one, other = (noisy(order, typ) for order in ORDERS)
    found = []
    for seed in range(seeds):
        x = np.random.default_rng(seed).standard_normal((4, 16)).astype(typ)
        check = Check(inputs={"x": x}) if given else Check(seed=seed)
        found += [verify(one, other, check), verify(other, one, check)]
    beyond = [any(error.max_rel > 1e-5 for error in each.outputs) for each in found]
    assert sum(beyond) > 0.9 * len(found)
    return [each.status for each in found].count("failed")


@pytest.mark.parametrize("given", [False, True], ids=["made up", "given"])
def test_rounding_is_not_refused_by_the_luck_of_one_input(given: bool) -> None:
    """By one input alone, a tenth is."""
    assert refused(16, given) == 0


def tipping(order: list[int]) -> onnx.ModelProto:
    """What `noisy` gives, made 0 or 1: its rounding decides which, on about every third input."""
    proto = noisy(order)
    nodes = [
        helper.make_node("Mul", ["y", "steep"], ["z"]),
        helper.make_node("Clip", ["z", "low", "high"], ["c"]),
    ]
    proto.graph.node.extend([*nodes, helper.make_node("Add", ["c", "x0"], ["out"])])
    for name, number in (("steep", 1e9), ("low", 0.0), ("high", 1.0), ("x0", 0.5)):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(number), name))
    proto.graph.output[0].CopyFrom(value("out", [4, 1]))
    for tensor in proto.graph.initializer:
        if tensor.name == "e":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.float32(3e-6), "e"))
    return proto


def test_a_net_that_tips_over_is_not_refused_by_luck(monkeypatch: pytest.MonkeyPatch) -> None:
    """The original may be lucky on three inputs; with their last bits changed it is not."""
    one, other = map(tipping, ORDERS)

    def refused() -> int:
        found = [
            verify(*pair, Check(seed=seed)) for seed in range(20) for pair in ((one, other), (other, one))
        ]
        return [each.status for each in found].count("failed")

    assert refused() == 0
    monkeypatch.setattr(difference, "NUDGES", 0)
    assert refused() > 0


def test_half_precision_is_judged_by_three_inputs_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """By one input alone, 6 of 24 are refused: the float32 copies round more than this tolerance."""
    for kind in ("float16", "float16 as float32"):
        monkeypatch.setitem(TOLERANCES, kind, Tolerance(1e-5, 0.0, "tight"))
    assert refused(12, False, np.float16) <= 2


def test_other_inputs_near_to_what_is_given():
    feed = {"x": np.ones((2, 3), np.float16), "ids": np.arange(3)}
    found = [near(feed, more) for more in (1, 2)]
    for each in found:
        assert each is not None and each["ids"] is feed["ids"] and each["x"].dtype == np.float16
        assert (each["x"] > 0.95).all() and (each["x"] < 0.99).all()
    assert not np.array_equal(found[0]["x"], found[1]["x"])
    assert near({"ids": feed["ids"]}, 1) is None
    feeds = Feeds(load(chain(1)), {"x": np.full((1, 4, 5, 5), 0.5, np.float32)}, None, 0, {"x": (0.495, 1.0)})
    assert feeds.another(next(iter(feeds)), 1) is None  # it would leave the range


def test_a_tolerance_that_is_given_has_no_exceptions():
    one, other = map(noisy, ORDERS)
    assert verify(one, other).outputs[0].rounding
    for given in (Check(rtol=1e-5), Check(atol=1e-9)):
        result = verify(one, other, given)
        assert (result.status, result.outputs[0].word) == ("failed", "WRONG")
    strict = verify(chain(3), chain(3, folded=3), Check(rtol=1e-12))
    assert (strict.status, strict.rtol) == ("failed", 1e-12)
    assert strict.reason == "y differs, by less than the usual tolerance of float32, 1e-05"


@pytest.mark.parametrize("layer", range(3))
def test_a_small_error_in_one_layer_is_found(layer):
    original = chain(3, shape=(1, 4, 8, 8))
    mutant = chain(3, folded=3, shape=(1, 4, 8, 8))
    (weight,) = (t for t in mutant.graph.initializer if t.name == f"w{layer}")
    off = onnx.numpy_helper.to_array(weight) * np.float32(1 + 1e-4)
    weight.CopyFrom(onnx.numpy_helper.from_array(off, weight.name))
    for seed in range(4):
        assert verify(original, mutant, Check(seed=seed)).status == "failed"


def test_the_median_of_three_inputs_decides():
    def judged(*ours: float) -> bool:
        error = OutputError("y", "float32", 1e-3, 1e-3, 1.0, False)
        excuse(error, [Strays(own, each) for own, each in zip((1e-3, 4e-4, 2e-4), ours, strict=False)])
        return error.ok

    assert judged(1.9e-3)
    assert not judged(2.1e-3)
    assert judged(9e-3, 1.9e-3, 1e-4)
    assert not judged(9e-3, 2.1e-3, 1e-4)
    different = OutputError("y", "float32", math.inf, math.inf, 1.0, False)  # a NaN on one side, say
    excuse(different, [Strays(1.0, 0.0)])
    assert not different.ok


def test_what_is_not_finite_is_no_rounding():
    exact = np.array([1.0, 2.0, np.inf])
    found = strays(np.array([1.0, np.nan, np.inf], np.float32), Truth(exact, exact.astype(np.float32)))
    assert found == Strays(0.0, math.inf)
    assert strays(exact, Truth(exact * np.nan, exact)) is None
    assert strays(exact, Truth(exact[:2], exact)) is None
    assert strays(np.array([1, 2, 3, 4]), Truth(np.array([1, 2, 3, 5]), np.array([0, 0, 3, 5]))) == (
        0.5,
        0.25,
    )


def test_truth_decides_by_twice_the_own_error():
    exact, x = np.array([1.0, 2.0]), np.array([1.0, 2.1], np.float32)
    tight = Tolerance(1e-5, 0.0, "")
    for y, ok in ((2.0, True), (1.81, True), (1.79, False), (2.19, True), (2.21, False)):
        ours = np.array([1.0, y], np.float32)
        found = compare("y", x, ours, tight)
        excuse_by(found, tight, [{"y": (ours, Truth(exact, x))}])
        assert found[0].ok is ok


def test_quantized_activations_may_tip_by_a_step():
    def proto(scale: float) -> onnx.ModelProto:
        nodes = [
            helper.make_node("Mul", ["x", "k"], ["s"]),
            helper.make_node("QuantizeLinear", ["s", "step", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["y"]),
        ]
        weights = {"k": np.float32(scale), "step": np.float32(1 / 64), "zero": np.int8(0)}
        return model(nodes, [value("x", [127])], [value("y", [127])], weights)

    x = {"x": np.arange(127, dtype=np.float32) / 64 + np.float32(0.5 / 64)}  # each on the edge of two steps
    result = verify(proto(1), proto(1 + 1e-6), Check(inputs=x))
    assert (result.status, result.rtol) == ("passed", TOLERANCES["quantized"].rtol)
    assert result.outputs[0].max_abs == 1 / 64
    assert verify(proto(1), proto(1.1), Check(inputs=x)).status == "failed"


def test_every_tolerance_says_why():
    assert all(t.why and 0 < t.rtol < 0.5 for t in TOLERANCES.values())
    assert (
        TOLERANCES["float64"].rtol
        < TOLERANCES["float32"].rtol
        < TOLERANCES["float16"].rtol
        < TOLERANCES["bfloat16"].rtol
    )
