"""Values that others read, capture or override too: channels stay for them, or they are copied."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from bnfold.errors import UsageError
from bnfold.onnx_graph.file.loaded import load
from bnfold.passes.channels.drop import drop_dead_channels
from tests.onnx_graph.look import difference, feeds, run
from tests.passes.channels.drop_cases import DEAD
from tests.passes.channels.dropping import Net, lost


def refused(g: Net, model: onnx.ModelProto | None = None) -> str:
    model = model or g.model()
    loaded = load(model)
    dropped = drop_dead_channels(loaded)
    assert dropped.layers == []
    assert loaded.to_proto().SerializeToString() == model.SerializeToString()
    return " ".join(f"{kept.blocked_by} {kept.reason}" for kept in dropped.kept)


def test_a_weight_of_two_layers_stays() -> None:
    g = Net()
    y = g.layer(g.image(), dead={1: 0.5}, name="a")
    w = g.weight((4, 4, 1, 1), 4, "shared")
    g.output(g.op("Add", g.op("Conv", y, w, name="b"), g.op("Conv", g.op("Tanh", y), w, name="c")))
    assert "shared is shared with other nodes" in refused(g)


def test_a_weight_that_the_caller_may_override_is_not_known() -> None:
    g = Net()
    g.output(g.layer(g.layer(g.image(), dead={1: 0.5}, name="a"), name="b"))
    g.expose("b_weight")
    assert "its weight is not constant" in refused(g)


def test_captured_by_a_body() -> None:
    g = Net()
    y = g.layer(g.image(), dead={1: 0.5}, name="a")
    yes, no = g.body(), g.body()
    yes.output(yes.op("Tanh", y))
    no.output(no.op("Sigmoid", y))
    flag = g.input("flag", (), "bool")
    g.output(g.op("If", flag, then_branch=yes.graph("yes"), else_branch=no.graph("no"), name="if"))
    assert "captured by if" in refused(g)


def test_inside_a_body_it_leaves() -> None:
    g = Net()
    x = g.image()
    yes, no = g.body(), g.body()
    yes.output(yes.layer(yes.layer(x, dead={1: 0.5}, name="a"), name="b"))
    no.output(no.layer(x, name="c"))
    flag = g.input("flag", (), "bool")
    g.output(g.op("If", flag, then_branch=yes.graph("yes"), else_branch=no.graph("no"), name="if"))
    model = g.model()
    loaded = load(model)
    assert lost(drop_dead_channels(loaded)) == {"a": (1, 0), "b": (0, 1)}
    onnx.checker.check_model(loaded.to_proto(), full_check=True)


def test_a_conv_that_takes_channels_as_its_bias() -> None:
    g = Net()
    x = g.image()
    bias = g.op(
        "Squeeze",
        g.op("ReduceMean", g.layer(x, dead={1: 0.5}, name="a"), g.integers(0, 2, 3)),
        g.integers(0, 2, 3),
    )
    g.output(g.op("Conv", x, g.weight((4, 3, 1, 1), 3), bias, name="b"))
    assert "takes them as a parameter" in refused(g)


def two_with_one_bias() -> onnx.ModelProto:
    """Two first layers, of which one has a dead channel, with the same bias."""
    g = Net()
    x, bias = g.image(), g.const(np.array([0.5, 1, 2, 3]), "bias")
    w = g.normal((4, 3, 1, 1))
    w[0] = 0
    a, c = g.op("Conv", x, g.const(w, "w"), bias, name="a"), g.op("Conv", x, g.weight((4, 3, 1, 1), 3), bias)
    g.output(g.op("Add", g.layer(a, name="b"), g.layer(c, name="d")))
    return g.model()


def test_a_vector_of_two_layers_is_copied() -> None:
    model = two_with_one_bias()
    loaded = load(model)
    assert lost(drop_dead_channels(loaded)) == {"a": (1, 0), "b": (0, 1)}
    result = loaded.to_proto()
    sizes = {t.name: list(t.dims) for t in result.graph.initializer}
    assert (sizes["bias"], sizes["bias_bnfold"]) == ([4], [3])
    assert difference(run(model, feeds(model, 0)), run(result, feeds(result, 0))) < 1e-6


def test_unless_that_is_not_wanted() -> None:
    dropped = drop_dead_channels(load(two_with_one_bias()), shared="skip")
    assert dropped.layers == []
    assert dropped.kept[0].reason == "bias has several users"
    with pytest.raises(UsageError, match="the stored value 'bias' is shared by a, conv"):
        drop_dead_channels(load(two_with_one_bias()), shared="error")


def test_initializers_that_are_inputs_too() -> None:
    """As before IR 4, where nobody could override them."""
    g = Net(opset=9, ir=3)
    y = g.op("Relu", g.layer(g.image(), dead=DEAD, name="a"))
    g.output(g.layer(y, 5, 3, pads=[1] * 4, name="b"))
    g.expose(*(t.name for t in g.initializers))
    model = g.model()
    loaded = load(model)
    assert lost(drop_dead_channels(loaded)) == {"a": (2, 0), "b": (0, 2)}
    result = loaded.to_proto()
    onnx.checker.check_model(result, full_check=True)
    stated = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in result.graph.input}
    for tensor in result.graph.initializer:
        assert stated[tensor.name] == list(tensor.dims)
    assert difference(run(model, feeds(model, 0)), run(result, feeds(result, 0))) < 1e-6


def test_inside_a_function_it_stays() -> None:
    g = Net()
    x = g.image()
    inner = Net(how="constant", parent=g)
    y = inner.input("t", (2, 3, 6, 6))
    inner.output(inner.layer(inner.layer(y, dead={1: 0.5}, name="a"), name="b"))
    inner.inputs.clear()
    inner.function("Two", ["t"])
    g.output(*g.ops("Two", x, count=1, domain="test"))
    refused(g)
