"""The function bodies compute what the operators promise, in every version of the standard operators."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper

from bnfold.passes.deploy import bnfold_ops as ops
from tests.onnx_graph.look import Array, run

OPSETS = (7, 11, 12, 13, 14, 15, 17, 18, 20, 21, 23)
EPSILON = 0.02
# A result is rounded to its type once or a few times: so many units in the last place of the largest value.
NEAR = {"float32": 4e-7, "float16": 2e-3}


def reference(variant: ops.Variant, x: Array, scale: Array, shift: Array, residual: Array) -> Array:
    """The operator in float64."""
    wide, axes = x.astype(np.float64), (0, *range(2, x.ndim))
    if variant.statistics:
        wide = (wide - wide.mean(axes, keepdims=True)) / np.sqrt(wide.var(axes, keepdims=True) + EPSILON)
    y = wide * scale.astype(np.float64) + shift.astype(np.float64)
    if variant.add:
        y = y + residual.astype(np.float64)
    return np.maximum(y, 0) if variant.relu else y


def model_of(
    variant: ops.Variant, opset: int, dtype: str, shape: tuple[int, ...], sets: int
) -> tuple[onnx.ModelProto, dict[str, Array]]:
    rng, typ = np.random.default_rng(len(shape)), np.dtype(getattr(ml_dtypes, dtype, dtype))
    per_channel = (sets, shape[1], *[1] * (len(shape) - 2))
    shapes = {"x": shape, "scale": per_channel, "shift": per_channel, "residual": shape}
    arrays = {name: np.asarray(rng.normal(0.3, 1, s)).astype(typ) for name, s in shapes.items()}
    names = [*shapes][: 3 + variant.add]
    node = helper.make_node(variant.name, names, ["y"], domain=ops.DOMAIN, **ops.attributes(variant, EPSILON))
    code = helper.np_dtype_to_tensor_dtype(typ)
    kinds = [helper.make_tensor_value_info(name, code, shapes[name]) for name in names]
    graph = helper.make_graph([node], "g", kinds, [helper.make_tensor_value_info("y", code, shape)])
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(ops.DOMAIN, ops.VERSION)]
    model = helper.make_model(
        graph, functions=[ops.function(variant, opset)], opset_imports=imports, ir_version=10
    )
    onnx.checker.check_model(model, full_check=True)
    return model, {name: arrays[name] for name in names} | {"residual": arrays["residual"]}


@pytest.mark.parametrize("variant", ops.variants(), ids=lambda variant: variant.name)
@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_function_is_the_operator(variant: ops.Variant, opset: int, dtype: str) -> None:
    if opset < ops.lowest_opset(variant, dtype):
        return  # such a node is not written: test_the_lowest_opset_is_that_of_the_body
    for shape in ((6, 5), (2, 5, 7), (3, 5, 4, 6), (2, 5, 3, 2, 4)):
        for sets in (1,) if variant.statistics else (1, shape[0]):
            model, feed = model_of(variant, opset, dtype, shape, sets)
            expected = reference(variant, feed["x"], feed["scale"], feed["shift"], feed["residual"])
            names = {entry.name for entry in model.graph.input}
            [found] = run(model, {name: array for name, array in feed.items() if name in names})
            assert found.dtype == feed["x"].dtype
            assert np.abs(found - expected).max() <= NEAR[dtype] * np.abs(expected).max(), (shape, sets)


@pytest.mark.parametrize("statistics", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_lowest_opset_is_that_of_the_body(statistics: bool, dtype: str) -> None:
    variant = ops.Variant(statistics, add=True, relu=True)
    lowest = ops.lowest_opset(variant, dtype)
    model_of(variant, lowest, dtype, (2, 3, 4), 1)  # passes the checker
    if not statistics:
        return  # 7 is where folding begins
    with pytest.raises((onnx.checker.ValidationError, onnx.shape_inference.InferenceError)):
        model_of(variant, lowest - 1, dtype, (2, 3, 4), 1)


def test_bfloat16_keeps_its_type() -> None:
    variant = ops.Variant(True, add=True, relu=True)
    model, feed = model_of(variant, 22, "bfloat16", (3, 4, 5), 1)
    expected = reference(variant, feed["x"], feed["scale"], feed["shift"], feed["residual"])
    [found] = run(model, feed, "reference")
    assert found.dtype == feed["x"].dtype
    assert np.abs(found.astype(np.float64) - expected).max() < 2**-7 * np.abs(expected).max()


def test_statistics_of_half_types_are_taken_in_float32() -> None:
    """In float16 the sum of 4,096 squares of values near 300 would be infinite."""
    variant = ops.Variant(True)
    model, _ = model_of(variant, 18, "float16", (1, 1, 64, 64), 1)
    x = np.random.default_rng(0).normal(300, 100, (1, 1, 64, 64)).astype(np.float16)
    one, zero = np.ones((1, 1, 1, 1), np.float16), np.zeros((1, 1, 1, 1), np.float16)
    [found] = run(model, {"x": x, "scale": one, "shift": zero})
    expected = reference(variant, x, one, zero, x)
    assert np.abs(found - expected).max() < 2e-3 * np.abs(expected).max()


def test_epsilon_has_a_default() -> None:
    assert [(a.name, round(a.f, 9)) for a in ops.function(ops.Variant(True), 18).attribute_proto] == [
        ("epsilon", 1e-5)
    ]


def test_a_zero_variance_gives_the_shift() -> None:
    model, feed = model_of(ops.Variant(True), 18, "float32", (2, 3, 4), 1)
    [found] = run(
        model, {"x": np.full((2, 3, 4), 7, np.float32), "scale": feed["scale"], "shift": feed["shift"]}
    )
    assert (found == feed["shift"]).all()


def test_names_and_attributes_are_what_tensorrt_looks_for() -> None:
    assert [variant.name for variant in ops.variants()] == [
        "BnfoldBatchNorm", "BnfoldBatchNormRelu", "BnfoldBatchNormAdd", "BnfoldBatchNormAddRelu",
        "BnfoldBatchStatNorm", "BnfoldBatchStatNormRelu",
        "BnfoldBatchStatNormAdd", "BnfoldBatchStatNormAddRelu",
    ]  # fmt: skip
    assert ops.attributes(ops.Variant(False), 0) == {"plugin_namespace": "bnfold", "plugin_version": "1"}
    assert ops.attributes(ops.Variant(True), 0.5)["epsilon"] == 0.5
