"""What reads a tensor tells its type and rank where its producer is of a domain that nobody knows."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest
from onnx import helper

import bnfold
from tests.onnx_graph import look
from tests.onnx_graph.build import Build

IMAGE, ROWS = (2, 6, 5, 4), (4, 6)


def _conv(g: Build, x: str) -> str:
    return g.conv(x, 5, k=3)


def _transposed(g: Build, x: str) -> str:
    return g.op("Sigmoid", g.deconv(x, 8))


def _gemm(g: Build, x: str) -> str:
    return g.gemm(x, 5, transB=1)


def _turned(g: Build, x: str) -> str:
    """The stored matrix is the first one."""
    return g.op("Gemm", g.weight((6, 5), 6), x, transA=1, transB=1)


def _through(g: Build, x: str) -> str:
    """The reader that tells stands behind others, which keep shapes and types."""
    return g.conv(g.bn(g.op("Identity", g.op("Relu", x))), 7)


READERS: dict[str, tuple[Callable[[Build, str], str], tuple[int, ...]]] = {
    "Conv": (_conv, IMAGE),
    "ConvTranspose": (_transposed, IMAGE),
    "Gemm": (_gemm, ROWS),
    "Gemm, whose first matrix is stored": (_turned, ROWS),
    "others in between": (_through, IMAGE),
}


def made(behind: Callable[[Build, str], str], shape: tuple[int, ...], opset: int = 17) -> onnx.ModelProto:
    """x -> Elu -> batch norm without shifts -> what stands behind."""
    g = Build(opset=opset, dtype="float64" if opset > 13 else "float32", seed=11, signs="positive")
    y = g.op("Elu", g.input("x", shape), name="elu")
    parameters = g.norm_parameters(6)
    zeros = behind is _through  # in front of a Relu
    for tensor in g.initializers[1:3] if zeros else ():
        tensor.raw_data = bytes(len(tensor.raw_data))
    g.output(behind(g, g.op("BatchNormalization", y, *parameters, name="bn")))
    return g.model()


def secret(model: onnx.ModelProto, op: str = "Secret") -> onnx.ModelProto:
    """The same with an operator that nobody knows in place of Elu, and no shape stated behind it; or back."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    node = next(node for node in copy.graph.node if node.name == "elu")
    node.op_type, node.domain = op, "" if op == "Elu" else "secret"
    if op != "Elu":
        copy.opset_import.append(helper.make_opsetid("secret", 1))
        for value in copy.graph.output:
            value.type.tensor_type.ClearField("shape")
    return copy


@pytest.mark.parametrize("opset", [13, 17])
@pytest.mark.parametrize("name", READERS)
def test_the_fold_forward_is_exact(name: str, opset: int) -> None:
    model = made(*READERS[name], opset=opset)
    folded, report = bnfold.fold_onnx(secret(model), verify=False)
    assert not report.kept, str(report)
    assert "BatchNormalization" not in {node.op_type for node in folded.graph.node}
    # onnx's reference mixes in momentum before opset 14
    evaluator, close = ("reference", 1e-12) if opset > 13 else ("onnxruntime", 1e-5)
    for seed in range(3):
        feed = look.feeds(model, seed)
        expected, found = (look.run(proto, feed, evaluator) for proto in (model, secret(folded, "Elu")))
        assert look.difference(expected, found) < close


def test_where_nothing_tells_the_cure_names_value_info() -> None:
    model = made(lambda g, x: g.op("Sigmoid", g.op("MatMul", x, g.weight((6, 3), 6))), ROWS)
    hidden = secret(model)
    _, report = bnfold.fold_onnx(hidden, verify=False)
    assert [entry.outcome for entry in report.entries] == ["kept"]
    assert "value_info" in report.entries[0].cure
    hidden.graph.value_info.append(helper.make_tensor_value_info("elu_out", onnx.TensorProto.DOUBLE, ROWS))
    assert not bnfold.fold_onnx(hidden, verify=False)[1].kept


def test_the_rank_of_a_loops_result_is_told_by_its_reader() -> None:
    """A Loop whose body is of an unknown domain."""
    g = Build(seed=4)
    x, body = g.input("x", IMAGE), g.body()
    body.input("step", (), "int64")
    body.input("go_on", (), "bool")
    state = body.input("state", IMAGE)
    body.output(body.op("Identity", "go_on"), body.op("Elu", state, name="elu"))
    loop = body.graph("body")
    y = g.op("Loop", g.ints(2), "", x, body=loop, name="loop")
    g.output(g.conv(g.bn(y), 5))
    model = g.model()
    inner = next(node for node in model.graph.node if node.name == "loop").attribute[0].g
    inner.node[1].op_type, inner.node[1].domain = "Secret", "secret"
    for value in (*inner.output, *inner.input, *model.graph.output):
        if value.name not in ("step", "go_on"):
            value.type.tensor_type.ClearField("shape")
    model.opset_import.append(helper.make_opsetid("secret", 1))
    folded, report = bnfold.fold_onnx(model, verify=False)
    assert not report.kept, str(report)
    assert [node.op_type for node in folded.graph.node] == ["Loop", "Conv"]
