"""What other tools make of a model, right and wrong, and by operators of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bnfold.onnx_graph.file.loaded import load
from bnfold.onnx_graph.run.side_by_side import Feeds
from bnfold.proof.decide import prove
from bnfold.proof.result import Proof
from bnfold.proof.trial import trial
from tests.proof.test_decide import graph, node

X = [1, 3, 8, 8]
RNG = np.random.default_rng(0)
W = RNG.normal(size=(6, 3, 3, 3)).astype(np.float32)
NORM = {f"n{i}": v.astype(np.float32) for i, v in enumerate(RNG.uniform(0.5, 2, (4, 6)))}


def proof(a: onnx.ModelProto, b: onnx.ModelProto) -> Proof:
    return prove(load(a), load(b))


def first(found: Proof) -> str:
    """The node at which the models begin to differ."""
    assert found.refusal is not None
    return (found.begins or found.refusal).node


def conv_norm(**norm: Any) -> onnx.ModelProto:
    """Relu, Conv, batch norm, Relu."""
    nodes = [
        node("Relu", "x", "r"),
        node("Conv", "r w", "c", pads=[1] * 4),
        node("BatchNormalization", "c n0 n1 n2 n3", "n", **norm),
        node("Relu", "n", "y"),
    ]
    nodes[2].output.extend(["mean", "variance"] if norm else [])
    return graph(nodes, {"w": W, **NORM}, X)


def conv_with(scale: Any, shift: Any, name: str = "n") -> onnx.ModelProto:
    """The same with the scale and the shift in the Conv, whose output is called `name`."""
    w, b = (W * np.reshape(scale, (-1, 1, 1, 1))).astype(np.float32), np.float32(shift)
    nodes = [
        node("Relu", "x", "r"),
        node("Conv", "r w b", name, pads=[1] * 4),
        node("Relu", name, "y"),
    ]
    return graph(nodes, {"w": w, "b": b}, X)


def stored_statistics() -> tuple[Any, Any]:
    scale, shift, mean, variance = (value.astype(np.float64) for value in NORM.values())
    factor = scale / np.sqrt(variance + float(np.float32(1e-5)))
    return factor, shift - factor * mean


@pytest.mark.parametrize("name", ["n", "c"])
def test_a_batch_norm_that_trains_is_not_folded(name: str) -> None:
    """By the batch's own statistics: no Conv computes that. `name`: the tensor that is gone is the other."""
    folded = conv_with(*stored_statistics(), name)
    assert proof(conv_norm(), folded).status == "proved"
    found = proof(conv_norm(training_mode=1), folded)
    assert found.status == "refuted"
    assert first(found) == ("BatchNormalization_n" if name == "n" else "Conv_c")


@pytest.mark.parametrize("axis", [1, 3])
def test_a_mul_along_the_last_axis_is_none_of_channels(axis: int) -> None:
    """Six channels, and six columns."""
    scale = RNG.uniform(0.5, 2, 6).astype(np.float32)
    shape = [6 if i == axis else 1 for i in range(4)]
    nodes = [
        node("Conv", "x w", "c"),
        node("Mul", "c s", "m"),
        node("Relu", "m", "y"),
    ]
    original = graph(nodes, {"w": W, "s": scale.reshape(shape)}, X)
    nodes = [node("Conv", "x w", "m"), node("Relu", "m", "y")]
    found = proof(original, graph(nodes, {"w": W * scale.reshape(-1, 1, 1, 1)}, X))
    assert found.status == ("proved" if axis == 1 else "refuted")
    if axis == 3:
        assert first(found) == "Mul_m"


@pytest.mark.parametrize(("weight", "bias"), [(0.0, 0.0), (1e-4, 0.0), (0.0, 1e-4)])
def test_numbers_that_a_tool_computed_in_float32_are_decided_by_weights(weight: float, bias: float) -> None:
    """Each step is rounded, and a shift is a small difference of large numbers."""
    scale, _, mean, variance = NORM.values()
    factor = scale / np.sqrt(variance + np.float32(1e-5))
    near = (factor * mean * np.float32(1 + 1e-4)).astype(np.float32)
    original = conv_norm()
    original.graph.initializer[2].CopyFrom(onnx.numpy_helper.from_array(near, "n1"))
    shift = (0 - mean) * factor + near
    moved = conv_with(factor * np.float32(1 + weight), shift + np.float32(bias))
    found = proof(original, moved)
    assert found.status == ("refuted" if weight or bias else "proved"), str(found)
    if found.status == "proved":
        assert found.ways["weights"] == 1
        assert found.ways["evaluated"] == 0
        assert 0 < found.ulps < 8


# operators of other domains


BEHIND = [node("Mul", "t s", "u"), node("Sigmoid", "u", "y")]


def unfused() -> onnx.ModelProto:
    """A Conv with a batch norm and a Relu, and something behind it."""
    model = conv_norm()
    model.graph.node[-1].CopyFrom(node("Relu", "n", "t"))
    model.graph.node.extend(BEHIND)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(2), "s"))
    return model


def fused(activation: str = "Relu", s: float = 2.0) -> onnx.ModelProto:
    """The same as onnxruntime's extended optimizer writes it; or with another activation, or another s."""
    factor, shift = stored_statistics()
    w = (W * factor.reshape(-1, 1, 1, 1)).astype(np.float32)
    conv = node("FusedConv", "r w b", "t", pads=[1] * 4, activation=activation, domain="com.microsoft")
    stored = {"w": w, "b": shift.astype(np.float32), "s": np.float32(s)}
    model = graph([node("Relu", "x", "r"), conv, *BEHIND], stored, X)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


def test_a_custom_operator_is_undecided_and_what_follows_is_proved() -> None:
    found = proof(unfused(), fused())
    assert found.status == "undecided"
    assert "custom operator com.microsoft.FusedConv" in str(found)
    assert [one.tensor for one in found.agreed] == ["t"]
    assert found.ways["identical"] == 3
    assert found.to_dict()["agreed"] == [one.to_dict() for one in found.agreed]


@pytest.mark.parametrize(
    ("wrong", "name"), [(fused(s=2.02), "Mul_u"), (fused("Tanh"), "Relu_t")], ids=["behind it", "itself"]
)
def test_what_is_wrong_is_refuted_beside_a_custom_operator_too(wrong: onnx.ModelProto, name: str) -> None:
    found = proof(unfused(), wrong)
    assert found.status == "refuted"
    assert first(found) == name


def test_a_custom_operator_that_reads_what_stands_before() -> None:
    """A MatMul with a Transpose in it, which something else still reads."""
    w = RNG.normal(size=(4, 5)).astype(np.float32)
    rest = [node("ReduceSum", "t", "s"), node("Add", "m s", "y")]
    nodes = [node("Transpose", "x", "t", perm=[0, 2, 1])]
    original = graph([*nodes, node("MatMul", "t w", "m"), *rest], {"w": w}, [2, 4, 3])
    product = node("FusedMatMul", "x w", "m", transA=1, domain="com.microsoft")
    other = graph([*nodes, product, *rest], {"w": w}, [2, 4, 3])
    other.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    found = proof(original, other)
    assert [one.tensor for one in found.agreed] == ["m"]
    assert found.ways["identical"] == 3


# faults that everything behind depends on


def deep(moved: float = 1.0, scales: Any = (), narrow: bool = False) -> onnx.ModelProto:
    """35 times Conv and LeakyRelu. moved: times the second weight. scales: of what each of them gives."""
    rng = np.random.default_rng(5)
    weights = [np.float32(rng.normal(size=(3, 3, 1, 1)) / 2) for _ in range(35)]
    weights[1] = weights[1] * np.float32(moved)
    before, nodes = "x", []
    for i, after in enumerate([*range(34), "y"]):
        nodes += [node("Conv", f"{before} w{i}", f"c{i}"), node("LeakyRelu", f"c{i}", str(after), alpha=0.7)]
        before = str(after)
    for i, scale in enumerate(scales):
        weights[i], weights[i + 1] = weights[i] * np.float32(scale), weights[i + 1] / np.float32(scale)
    model = graph(nodes, {f"w{i}": w for i, w in enumerate(weights)}, X)
    if narrow:
        model.graph.node[0].input[0] = "z"
        casts = [node("Cast", "x", "h", to=TensorProto.FLOAT16), node("Cast", "h", "z", to=TensorProto.FLOAT)]
        model.graph.node.extend(casts)
    return model


def test_a_fault_far_from_the_outputs_is_shown_by_a_run() -> None:
    """Behind it no claim holds, and what comes out is off by less than a twentieth."""
    found = proof(deep(), deep(1.01))
    assert found.status == "refuted", str(found)
    assert found.refusal is not None
    assert found.refusal.reason == "one run shows another output"
    assert first(found) == "Conv_c1"
    assert len(found.dropped) < 15


def shown(original: onnx.ModelProto, other: onnx.ModelProto) -> bool:
    """Whether a run tells the two apart."""
    a = load(original)
    return trial(a, load(other), Feeds(a, None, None, 0), suspect=True)[1] is not None


def test_a_run_does_not_refute_what_is_right() -> None:
    """All tensors but the outputs are others, and rounded anew."""
    assert shown(deep(), deep(1.01))
    assert not shown(deep(), deep(scales=np.random.default_rng(6).uniform(0.5, 2, 34)))


def test_a_run_says_nothing_of_small_errors_where_numbers_are_narrow() -> None:
    """The last bits of the inputs are lost in a Cast to float16, and say nothing of what rounding does."""
    assert not shown(deep(narrow=True), deep(1.01, narrow=True))
    assert shown(deep(narrow=True), deep(3.0, narrow=True))


# constants


def test_a_constant_that_is_expanded_to_its_own_size_is_a_constant() -> None:
    """As torch's exporter writes the table of an attention: its many entries are no product of sizes."""
    index = np.arange(12000).reshape(1, -1) % 7
    table, sizes = np.arange(7, dtype=np.float32), np.int64([1, 12000])
    nodes = [node("Expand", "i s", "e"), node("Gather", "t e", "g"), node("Add", "x g", "y")]
    original = graph(nodes, {"i": index, "s": sizes, "t": table}, [1, 12000])
    computed = graph([node("Add", "x g", "y")], {"g": table[index]}, [1, 12000])
    assert proof(original, computed).status == "proved"
    off = table[index]
    off[0, 5000] += 1
    assert proof(original, graph([node("Add", "x g", "y")], {"g": off}, [1, 12000])).status == "refuted"
