"""Where one node of ours would not compute the same, or was not asked for, the batch norm stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bnfold import fold_onnx
from bnfold.errors import ModelError
from bnfold.passes.deploy import bnfold_ops as ops
from tests.onnx_graph.look import difference, run
from tests.passes.deploy.test_rewrite import op_types, rewritten

SHAPE = [2, 4, 5, 3]
LEFT = ["BatchNormalization", "Relu"]


def norm_and_relu(
    dtype: str = "float16",
    given: tuple[str, ...] = (),
    parameters: str = "",
    **how: Any,
) -> onnx.ModelProto:
    """x -> batch norm "bn" -> Relu. given: parameters that are graph inputs. how: values, and attributes."""
    numbers = {"gamma": 1.0, "beta": 0.5, "mean": 0.1, "var": 1.0}
    values = {name: how.pop(name, value) for name, value in numbers.items()}
    kind, other = (helper.np_dtype_to_tensor_dtype(np.dtype(each)) for each in (dtype, parameters or dtype))
    stored = [
        numpy_helper.from_array(np.full(4, value, parameters or dtype), name)
        for name, value in values.items()
        if name not in given
    ]
    data = [helper.make_tensor_value_info(name, kind, SHAPE) for name in ("x", "y")]
    extra = [helper.make_tensor_value_info(name, other, [4]) for name in given]
    nodes = [
        helper.make_node("BatchNormalization", ["x", *values], ["n"], "bn", **how),
        helper.make_node("Relu", ["n"], ["y"], "relu"),
    ]
    graph = helper.make_graph(nodes, "g", [data[0], *extra], data[1:], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.mark.parametrize("given", [("gamma", "beta"), ("mean", "var"), ("var",)])
def test_parameters_of_another_type_that_are_known_at_run_time_only(given: tuple[str, ...]) -> None:
    """Opset 15 allows them; all inputs of our operators are of one type."""
    model = norm_and_relu(given=given, parameters="float32")
    assert op_types(rewritten(model)[0]) == LEFT


def test_batch_statistics_with_parameters_of_another_type_become_standard_operators() -> None:
    model = norm_and_relu(given=("gamma",), parameters="float32", training_mode=1)
    result, [entry], _ = rewritten(model)
    assert entry.op == "standard operators"
    assert not result.functions


@pytest.mark.parametrize(("size", "expected"), [(1e-4, LEFT), (1.0, ["BnfoldBatchNormRelu"])])
def test_a_scale_that_is_subnormal_loses_its_bits(size: float, expected: list[str]) -> None:
    """gamma and var are float16, gamma/sqrt(var) is 5e-7: five percent off."""
    model = norm_and_relu(gamma=size, var=4e4, beta=0.0, mean=0.0)
    assert op_types(rewritten(model)[0]) == expected


@pytest.mark.parametrize(
    ("dtype", "mean", "expected"),
    [
        ("float16", 500.0, LEFT),
        ("float16", 10.0, ["BnfoldBatchNormRelu"]),
        ("float32", 500.0, ["BnfoldBatchNormRelu"]),
    ],
)
def test_a_mean_that_is_large_beside_the_deviation(dtype: str, mean: float, expected: list[str]) -> None:
    """x - 500.3 is exact to a thousandth in float16's hands, x*1 - 500.3 is not to a tenth."""
    model = norm_and_relu(dtype, mean=mean, gamma=1.1, beta=0.3)
    x = (mean + np.random.default_rng(0).standard_normal(SHAPE)).astype(dtype)
    folded, report = fold_onnx(model, target="tensorrt", inputs={"x": x})
    assert op_types(folded) == expected
    assert report.verification is None or report.verification.status == "passed"


def test_what_is_skipped_is_left_alone() -> None:
    folded, report = fold_onnx(norm_and_relu("float32"), target="tensorrt", skip=["bn"])
    assert op_types(folded) == LEFT
    assert report.rewritten == []


@pytest.mark.parametrize("target", ["onnx", "tensorrt"])
def test_training_inside_a_function_is_told(target: str) -> None:
    inner = helper.make_node(
        "BatchNormalization", ["a", *"gbmv"], ["o", "om", "ov"], "inner", training_mode=1
    )
    opset = [helper.make_opsetid("", 18)]
    function = helper.make_function("d", "block", ["a", *"gbmv"], ["o"], [inner], opset)
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE) for name in ("x", "y")]
    stored = [numpy_helper.from_array(np.ones(4, np.float32), name) for name in "gbmv"]
    call = helper.make_node("block", ["x", *"gbmv"], ["y"], domain="d")
    graph = helper.make_graph([call], "g", infos[:1], infos[1:], stored)
    imports = [*opset, helper.make_opsetid("d", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=9, functions=[function])
    _, done, notes = rewritten(model, target, lower=True)
    assert done == []
    assert notes == ["still in training mode, inside a model-local function: inner"]


def test_another_function_of_that_name_is_not_called() -> None:
    model = norm_and_relu("float32")
    other = ops.function(ops.Variant(False, relu=True), 18)
    other.node[0].op_type = "Add"
    model.functions.append(other)
    model.opset_import.add(domain="bnfold", version=1)
    with pytest.raises(ModelError, match=r"another function bnfold\.BnfoldBatchNormRelu than this"):
        fold_onnx(model, target="tensorrt", verify=False)


def test_operators_of_another_version_are_not_mixed_with_ours() -> None:
    model = norm_and_relu("float32")
    model.opset_import.add(domain="bnfold", version=2)
    with pytest.raises(ModelError, match="uses version 2 of the domain bnfold, and this bnfold writes"):
        fold_onnx(model, target="tensorrt", verify=False)


def test_what_training_updates_is_read_and_not_copied() -> None:
    """training_info names gamma: a product with it that is stored would be stale after a step."""
    model = norm_and_relu("float32")
    info = model.training_info.add()
    info.algorithm.name = "step"
    info.algorithm.node.append(helper.make_node("Neg", ["gamma"], ["new"]))
    info.algorithm.output.append(helper.make_tensor_value_info("new", TensorProto.FLOAT, [4]))
    info.update_binding.add(key="gamma", value="new")
    result, [entry], _ = rewritten(model)
    assert entry.op == "bnfold.BnfoldBatchNormRelu"
    assert any("gamma" in node.input for node in result.graph.node)
    x = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    for stored in model.graph.initializer, result.graph.initializer:
        gamma = next(tensor for tensor in stored if tensor.name == "gamma")
        gamma.CopyFrom(numpy_helper.from_array(np.full(4, -3, np.float32), "gamma"))
    for each in model, result:
        del each.training_info[:]
    assert difference(run(model, {"x": x}), run(result, {"x": x})) < 2e-6
