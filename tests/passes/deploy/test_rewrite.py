"""What becomes one node for TensorRT, what stays as it is, and that both compute what the model did."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bnfold.onnx_graph.file.loaded import load
from bnfold.passes.deploy import bnfold_ops as ops
from bnfold.passes.deploy.rewrite import rewrite
from bnfold.report.fold import Rewrite
from tests.onnx_graph.build import Build
from tests.onnx_graph.look import difference, feeds, repeated_names, run

NEAR = 2e-6  # float32: a chain of four steps, in another order
SHAPE = (2, 4, 5, 3)


def rewritten(
    model: onnx.ModelProto, target: str = "tensorrt", lower: bool = False
) -> tuple[onnx.ModelProto, list[Rewrite], list[str]]:
    loaded = load(model)
    done, notes = rewrite(loaded, target, lower)
    result = loaded.to_proto()
    onnx.checker.check_model(result, full_check=True)
    assert repeated_names(result) == []
    return result, done, notes


def op_types(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def statistics(g: Build, x: str, *, power: bool = False, centred: bool = True) -> list[str]:
    """Mean and variance of each channel, as torch's exporter writes them."""
    over = [0, *range(2, len(g.shape(x)))]

    def mean(value: str, keepdims: int) -> str:
        if g.opset < 18:
            return g.op("ReduceMean", value, axes=over, keepdims=keepdims)
        return g.op("ReduceMean", value, g.ints(*over), keepdims=keepdims)

    d = g.op("Sub", x, mean(x, 1)) if centred else x
    square = g.op("Pow", d, g.const(np.float32(2))) if power else g.op("Mul", d, d)
    return [mean(x, 0), mean(square, 0)]


def batch_stats(g: Build, x: str, **how: bool) -> str:
    gamma, beta, *_ = g.norm_parameters(g.channels(x))
    return g.op("BatchNormalization", x, gamma, beta, *statistics(g, x, **how), name="norm")


def training(g: Build, x: str) -> list[str]:
    """The output, and the running statistics."""
    parameters, how = g.norm_parameters(g.channels(x)), {"training_mode": 1, "momentum": 0.7}
    return g.ops("BatchNormalization", x, *parameters, count=3, name="norm", **how)


def relu(g: Build, x: str) -> str:
    return g.op("Relu", x, name=g.fresh("relu"))


# One for each situation: how x and others become the output, and the operators that are expected.
Make = Callable[[Build, str], str]


@dataclass(frozen=True)
class Case:
    name: str
    make: Make
    expected: tuple[str, ...]
    replaces: int = 0  # nodes of the graph, by the first
    shape: tuple[int | str, ...] = SHAPE
    opset: int = 18
    dtype: str = "float32"


def per_sample(g: Build, name: str, shape: tuple[int | str, ...] = (2, 4, 1, 1)) -> str:
    return g.input(name, shape)


def conditional(g: Build, x: str) -> str:
    y = g.op("Mul", g.bn(x), per_sample(g, "gain"))
    return relu(g, g.op("Add", per_sample(g, "offset"), y))


def scale_only(g: Build, x: str) -> str:
    y = g.op("Mul", per_sample(g, "gain"), x, name="gain_mul")
    return g.op("Sigmoid", g.op("Add", y, per_sample(g, "offset")))


def runtime_parameters(g: Build, x: str) -> str:
    _, _, mean, var = g.norm_parameters(4)
    gamma, beta = g.input("gamma", (4,)), g.input("beta", (4,))
    return g.op("BatchNormalization", x, gamma, beta, mean, var, name="norm")


def runtime_statistics(g: Build, x: str) -> str:
    gamma, beta, *_ = g.norm_parameters(4)
    mean = g.input("mean", (4,))
    var = g.op("Abs", g.input("var", (4,)))
    return relu(g, g.op("BatchNormalization", x, gamma, beta, mean, var, name="norm", epsilon=0.1))


def two_readers(g: Build, x: str) -> str:
    y = g.bn(x)
    return g.op("Concat", relu(g, y), g.op("Sigmoid", y), axis=1)


def an_output_between(g: Build, x: str) -> str:
    y = g.bn(x)
    g.output(y)
    return relu(g, y)


def two_norms_summed(g: Build, x: str) -> str:
    return relu(g, g.op("Add", g.bn(x, name="first"), g.bn(g.op("Sigmoid", x), name="second")))


def with_itself(g: Build, x: str) -> str:
    y = g.bn(x)
    return relu(g, g.op("Add", y, y))


def in_a_branch(g: Build, x: str) -> str:
    then, other = g.body(), g.body()
    then.output(relu(then, then.bn(x, name="inner")))
    other.output(other.op("Sigmoid", x))
    condition = g.input("condition", (), "bool")
    return g.op("If", condition, then_branch=then.graph("then"), else_branch=other.graph("else"))


def in_a_function(g: Build, x: str) -> str:
    inner = Build(g.opset, parent=g, how="constant")
    inner.types["a"] = g.type_of(x)
    inner.output(relu(inner, inner.bn("a", name="inner")))
    inner.function("block", ["a"])
    return g.op("block", x, domain="test")


def statistics_of_another(g: Build, x: str) -> str:
    gamma, beta, *_ = g.norm_parameters(4)
    return g.op("BatchNormalization", x, gamma, beta, *statistics(g, g.op("Sigmoid", x)), name="norm")


FUSED = (
    Case("relu", lambda g, x: relu(g, g.bn(x)), ("BnfoldBatchNormRelu",), 2),
    Case("residual", lambda g, x: g.op("Add", g.bn(x), g.op("Sigmoid", x)), ("BnfoldBatchNormAdd",), 2),
    Case("residual on the left", lambda g, x: relu(g, g.op("Add", x, g.bn(x))),
         ("BnfoldBatchNormAddRelu",), 3),
    Case("a sum of two", lambda g, x: g.op("Sum", g.bn(x), x), ("BnfoldBatchNormAdd",), 2),
    Case("two norms summed", two_norms_summed, ("BnfoldBatchNormAddRelu",), 3),
    Case("per channel behind", lambda g, x: relu(g, g.add(g.mul(g.bn(x)))), ("BnfoldBatchNormRelu",), 4),
    Case("a scale and a shift alone", lambda g, x: relu(g, g.add(g.mul(x))), ("BnfoldBatchNormRelu",), 3),
    Case("conditional", conditional, ("BnfoldBatchNormRelu",), 4),
    Case("conditional, folded before", scale_only, ("BnfoldBatchNorm",), 2),
    Case("scale and bias at run time", runtime_parameters, ("BnfoldBatchNorm",), 1),
    Case("statistics at run time, of elsewhere", runtime_statistics, ("BnfoldBatchNormRelu",), 2),
    Case("rows", lambda g, x: relu(g, g.bn(x)), ("BnfoldBatchNormRelu",), 2, shape=(3, 4)),
    Case("dynamic sizes", lambda g, x: relu(g, g.bn(x)), ("BnfoldBatchNormRelu",), 2, shape=("n", 4, "h", 6)),
    Case("opset 7", lambda g, x: relu(g, g.bn(x)), ("BnfoldBatchNormRelu",), 2, opset=7),
    Case("float16", lambda g, x: relu(g, g.bn(x)), ("BnfoldBatchNormRelu",), 2, dtype="float16"),
    Case("in a branch", in_a_branch, ("BnfoldBatchNormRelu",), 2),
    Case("training mode", lambda g, x: training(g, x)[0], ("BnfoldBatchStatNorm",), 1),
    Case("training mode, followed", lambda g, x: relu(g, g.op("Add", training(g, x)[0], x)),
         ("BnfoldBatchStatNormAddRelu",), 3),
    Case("training mode, per channel behind", lambda g, x: g.add(g.mul(training(g, x)[0])),
         ("BnfoldBatchStatNorm",), 3),
    Case("written out", lambda g, x: relu(g, batch_stats(g, x)), ("BnfoldBatchStatNormRelu",), 2),
    Case("written out with Pow", lambda g, x: batch_stats(g, x, power=True), ("BnfoldBatchStatNorm",), 1),
    Case("written out, rows", batch_stats, ("BnfoldBatchStatNorm",), 1, shape=(6, 4)),
    Case("written out, opset 13", batch_stats, ("BnfoldBatchStatNorm",), 1, opset=13),
    Case("statistics of another tensor", statistics_of_another, ("BnfoldBatchNorm",), 1),
    Case("squares that are not centred", lambda g, x: batch_stats(g, x, centred=False),
         ("BnfoldBatchNorm",), 1),
)  # fmt: skip


@pytest.mark.parametrize("case", FUSED, ids=lambda case: case.name)
def test_one_node_does_it(case: Case) -> None:
    g = Build(case.opset, seed=5, dtype=case.dtype)
    g.output(case.make(g, g.input("x", case.shape)))
    model = g.model()
    result, done, _ = rewritten(model)
    assert [entry.op for entry in done] == [f"bnfold.{name}" for name in case.expected]
    assert len(done[0].replaces) == case.replaces
    assert {function.name for function in result.functions} == set(case.expected)
    feed = feeds(model, 2)
    evaluator = "reference" if "training" in case.name else "onnxruntime"  # which does not train
    expected = run(model, feed, evaluator)
    near = NEAR if case.dtype == "float32" else 2e-3
    assert difference(expected, run(result, feed)) < near
    assert difference(expected, run(result, feed, "reference")) < near
    again, done, _ = rewritten(result)
    assert done == []  # there is nothing left to do
    assert again.SerializeToString() == result.SerializeToString()


def a_residual_that_broadcasts(g: Build, x: str) -> str:
    return g.op("Sigmoid", g.op("Add", g.bn(x), g.op("ReduceMean", x, g.ints(2), keepdims=1)))


def a_large_scale(g: Build, x: str) -> str:
    """Each factor is a float16, their product is none."""
    y = g.per_channel("Mul", g.bn(x, scale=np.full(4, 300.0)), np.full(4, 300.0))
    return relu(g, y)


def a_gate(g: Build, x: str) -> str:
    return relu(g, g.op("Add", g.op("Mul", x, per_sample(g, "gate")), x))


def a_set_for_other_samples(g: Build, x: str) -> str:
    y = g.op("Mul", x, per_sample(g, "gain", ("m", 4, 1, 1)))
    return g.op("Add", y, per_sample(g, "offset", ("m", 4, 1, 1)))


ALONE = (
    Case("nothing follows", lambda g, x: g.op("Sigmoid", g.bn(x)), ("BatchNormalization", "Sigmoid")),
    Case("two readers", two_readers, ("BatchNormalization", "Relu", "Sigmoid", "Concat")),
    Case("an output between", an_output_between, ("BatchNormalization", "Relu")),
    Case("another activation", lambda g, x: g.op("LeakyRelu", g.bn(x)), ("BatchNormalization", "LeakyRelu")),
    Case("a residual that broadcasts", a_residual_that_broadcasts,
         ("BatchNormalization", "ReduceMean", "Add", "Sigmoid")),
    Case("summed with itself", with_itself, ("BatchNormalization", "Add", "Relu")),
    Case("a gate without a shift", a_gate, ("Mul", "Add", "Relu")),
    Case("one number for all", lambda g, x: relu(g, g.op("Add", g.op("Mul", x, g.const(0.5)), g.const(1.0))),
         ("Mul", "Add", "Relu")),
    Case("samples that may be others", a_set_for_other_samples, ("Mul", "Add"), shape=("n", 4, 5, 3)),
    Case("float64", lambda g, x: relu(g, g.bn(x)), ("BatchNormalization", "Relu"), dtype="float64"),
    Case("a scale too large for its type", a_large_scale,
         ("BatchNormalization", "Mul", "Relu"), dtype="float16"),
    Case("in a function", in_a_function, ("block",)),
)  # fmt: skip


@pytest.mark.parametrize("case", ALONE, ids=lambda case: case.name)
def test_the_neighbour_case_is_left_alone(case: Case) -> None:
    g = Build(case.opset, seed=5, dtype=case.dtype)
    g.output(case.make(g, g.input("x", case.shape)))
    model = g.model()
    result, done, notes = rewritten(model)
    assert done == []
    assert notes == []
    assert op_types(result) == list(case.expected)
    assert result.SerializeToString() == model.SerializeToString()


def test_a_set_for_each_sample_does_not_join_statistics() -> None:
    """The kernel has one scale a channel: what is for each sample stays a node of its own."""
    g = Build()
    y = g.op("Mul", training(g, g.input("x", SHAPE))[0], per_sample(g, "gain"))
    g.output(g.op("Add", y, per_sample(g, "offset")))
    model = g.model()
    result, done, _ = rewritten(model)
    assert [entry.op for entry in done] == ["bnfold.BnfoldBatchStatNorm", "bnfold.BnfoldBatchNorm"]
    feed = feeds(model, 1)
    assert difference(run(model, feed, "reference"), run(result, feed)) < NEAR


@pytest.mark.parametrize("opset", [14, 15, 17, 18, 21])
@pytest.mark.parametrize("target", ["onnx", "tensorrt"])
def test_running_statistics_that_others_read_are_computed_as_well(opset: int, target: str) -> None:
    g = Build(opset, seed=7)
    x = g.input("x", SHAPE)
    g.output(*training(g, x))
    model = g.model()
    result, [entry], notes = rewritten(model, target, lower=target == "onnx")
    assert entry == Rewrite("norm", "standard operators", ("norm",))
    assert notes == []
    assert "BatchNormalization" not in op_types(result)
    feed = feeds(model, 3)
    assert difference(run(model, feed, "reference"), run(result, feed)) < NEAR


@pytest.mark.parametrize("parameters", [TensorProto.FLOAT, TensorProto.FLOAT16])
@pytest.mark.parametrize("opset", [14, 18])
def test_half_types_are_normalized_in_float32(parameters: int, opset: int) -> None:
    """Parameters may be of a wider type than the data (opset 15); the sums would overflow in float16."""
    if opset < 15 and parameters != TensorProto.FLOAT16:
        opset = 15
    rng = np.random.default_rng(0)
    wide = helper.tensor_dtype_to_np_dtype(parameters)
    stored = [
        onnx.numpy_helper.from_array(rng.uniform(0.5, 2, 3).astype(wide), name)
        for name in ("gamma", "beta", "mean", "var")
    ]
    names = ["x", *[tensor.name for tensor in stored]]
    node = helper.make_node("BatchNormalization", names, ["y"], "norm", training_mode=1)
    kinds = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, [2, 3, 40, 40]) for name in ("x", "y")]
    graph = helper.make_graph([node], "g", kinds[:1], kinds[1:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    x = (rng.standard_normal((2, 3, 40, 40)) * 90 + 300).astype(np.float16)
    result, _, _ = rewritten(model, "onnx", lower=True)
    exact = x.astype(np.float64)
    exact = (exact - exact.mean((0, 2, 3), keepdims=True)) / exact.std((0, 2, 3), keepdims=True)
    gamma, beta = (onnx.numpy_helper.to_array(t).astype(np.float64).reshape(1, 3, 1, 1) for t in stored[:2])
    [found] = run(result, {"x": x})
    assert difference([(exact * gamma + beta).astype(np.float16)], [found]) < 2e-3


def test_without_a_known_shape_training_stays_and_is_told() -> None:
    g = Build()
    x = g.op("Reshape", g.input("x", (24,)), g.input("shape", (4,), "int64"))
    gamma, beta, mean, var = (g.input(name, ("c",)) for name in ("gamma", "beta", "mean", "var"))
    g.output(g.ops("BatchNormalization", x, gamma, beta, mean, var, count=3, name="norm", training_mode=1)[0])
    result, done, notes = rewritten(g.model())
    assert done == []
    assert notes == ["still in training mode, for shapes or types are not known: norm"]
    assert op_types(result) == ["Reshape", "BatchNormalization"]


def test_plain_onnx_is_changed_only_if_asked() -> None:
    g = Build()
    x = g.input("x", SHAPE)
    g.output(relu(g, g.bn(x)), training(g, x)[0])
    model = g.model()
    same, done, notes = rewritten(model, "onnx")
    assert (same.SerializeToString(), done, notes) == (model.SerializeToString(), [], [])
    lowered, done, _ = rewritten(model, "onnx", lower=True)
    assert [entry.name for entry in done] == ["norm"]
    assert op_types(lowered).count("BatchNormalization") == 1
    assert not lowered.functions


def test_a_flag_without_effect_is_told() -> None:
    g = Build()
    g.output(g.bn(g.input("x", SHAPE)))
    _, done, notes = rewritten(g.model(), "onnx", lower=True)
    assert (done, notes) == ([], ["no batch norm is in training mode"])


def test_old_files_get_the_version_that_knows_functions() -> None:
    """Before IR 4 every initializer was an input too, which nobody could override: it must not become one."""
    g = Build(7, ir=4)
    g.output(relu(g, g.bn(g.input("x", SHAPE))))
    model = g.model()
    g.expose(*[tensor.name for tensor in model.graph.initializer])
    model = g.model()
    model.ir_version = 3
    result, _, _ = rewritten(model)
    assert result.ir_version == ops.LOWEST_IR
    assert [entry.name for entry in result.graph.input] == ["x"]
    feed = feeds(model, 1)
    assert difference(run(model, feed), run(result, feed)) < NEAR


def test_the_new_node_stands_where_all_its_inputs_are_known() -> None:
    """The residual is computed after the batch norm."""
    g = Build()
    x = g.input("x", SHAPE)
    y = g.bn(x)
    late = g.op("Sigmoid", g.op("Tanh", x))
    g.output(g.op("Exp", g.op("Add", y, late)))
    model = g.model()
    result, _, _ = rewritten(model)
    assert op_types(result) == ["Tanh", "Sigmoid", "BnfoldBatchNormAdd", "Exp"]
    feed = feeds(model, 1)
    assert difference(run(model, feed), run(result, feed)) < NEAR
