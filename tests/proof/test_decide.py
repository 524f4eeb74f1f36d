"""Proofs: what is right is proved, what is wrong is not, and where a proof could be led astray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnfold
from bnfold.certificate import Certificate, Image
from bnfold.onnx_graph.file.loaded import load
from bnfold.proof import layers
from bnfold.proof.decide import prove
from bnfold.proof.result import Proof

WRONG = Path(__file__).parent.parent / "onnx_graph" / "wrong_folds"
FIRST = {  # where each of them begins to be wrong; "" where another message tells
    "div_by_ones": "norm1",
    "gemm_without_its_bias": "the model",
    "matmul_left": "conv",
    "matmul_rows": "conv",
    "mul_by_ones": "norm1",
    "one_scale_two_axes": "the model",
    "sub_from_zero": "conv",
    "two_norms": "conv",
    "two_scales": "conv",
}
X = [2, 3, 8, 8]


def graph(
    nodes: list[onnx.NodeProto],
    stored: dict[str, Any],
    x: list[Any] = X,
    kind: int = TensorProto.FLOAT,
    opset: int = 17,
) -> onnx.ModelProto:
    """From x to y."""
    inside = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in stored.items()],
    )
    return helper.make_model(inside, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def node(op: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), output.split(), name=f"{op}_{output}", **attributes)


def net(seed: int = 0) -> onnx.ModelProto:
    """Conv, batch norm, Relu, pool, a depthwise Conv with a batch norm, LeakyRelu, Clip, Flatten, Gemm."""
    rng = np.random.default_rng(seed)

    def norm(name: str, n: int) -> dict[str, Any]:
        values = rng.normal(size=n), rng.normal(size=n), rng.normal(size=n), rng.uniform(0.5, 2, n)
        return {f"{name}{i}": v.astype(np.float32) for i, v in enumerate(values)}

    stored = {
        **norm("n", 4),
        **norm("m", 4),
        "w": rng.normal(size=(4, 3, 3, 3)).astype(np.float32),
        "d": rng.normal(size=(4, 1, 3, 3)).astype(np.float32),
        "f": rng.normal(size=(16, 5)).astype(np.float32),
        "b": rng.normal(size=5).astype(np.float32),
        "low": np.float32(-1e4),
        "high": np.float32(1e4),
    }
    nodes = [
        node("Conv", "x w", "c", pads=[1, 1, 1, 1]),
        node("BatchNormalization", "c n0 n1 n2 n3", "n"),
        node("Relu", "n", "r"),
        node("MaxPool", "r", "p", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", "p d", "e", group=4),
        node("BatchNormalization", "e m0 m1 m2 m3", "m"),
        node("LeakyRelu", "m", "l", alpha=0.2),
        node("Clip", "l low high", "k"),
        node("Flatten", "k", "s"),
        node("Gemm", "s f b", "y"),
    ]
    return graph(nodes, stored)


def proof(a: onnx.ModelProto, b: onnx.ModelProto, claims: Any = None) -> Proof:
    claims = None if claims is None else Certificate({("", name): image for name, image in claims.items()})
    return prove(load(a), load(b), claims)


@pytest.mark.parametrize("name", FIRST)
def test_a_wrong_fold_is_refuted_at_its_node_and_the_right_one_proved(name: str) -> None:
    original, wrong = (onnx.load(WRONG / f"{name}.{which}.onnx") for which in ("original", "wrong"))
    found = bnfold.prove(original, wrong)
    assert found.status == "refuted"
    assert found.refusal is not None
    blamed = found.refusal if found.refusal.node == "the model" else found.begins
    assert blamed is not None
    assert blamed.node == FIRST[name]
    right, _ = bnfold.fold_onnx(original, verify=False)
    assert bnfold.prove(original, right).status == "proved"


def test_a_change_inside_of_a_body_is_not_proved() -> None:
    original, wrong = (
        onnx.load(WRONG / f"grid_behind_conditions.{which}.onnx") for which in ("original", "wrong")
    )
    assert bnfold.prove(original, wrong).status == "undecided"


@pytest.mark.parametrize("seed", range(5))
def test_a_fold_is_proved_by_its_weights(seed: int) -> None:
    original = net(seed)
    folded, _ = bnfold.fold_onnx(original, verify=False)
    found = proof(original, folded)
    assert found.status == "proved", str(found)
    assert found.ways["evaluated"] + found.ways["weights"] >= 1
    assert found.ulps <= 1


def test_a_batch_norm_in_a_conv_is_proved_by_weights_without_any_run() -> None:
    rng = np.random.default_rng(0)
    stored = {f"n{i}": rng.uniform(0.5, 2, 4).astype(np.float32) for i in range(4)}
    w = rng.normal(size=(4, 3, 3, 3)).astype(np.float32)
    nodes = [node("Conv", "x w", "c", pads=[1] * 4), node("BatchNormalization", "c n0 n1 n2 n3", "y")]
    original = graph(nodes, {**stored, "w": w})
    scale, shift, mean, var = (stored[f"n{i}"].astype(np.float64) for i in range(4))
    factor = scale / np.sqrt(var + float(np.float32(1e-5)))
    weight = (w * factor[:, None, None, None]).astype(np.float32)
    bias = (shift - factor * mean).astype(np.float32)
    folded = graph([node("Conv", "x v b", "y", pads=[1] * 4)], {"v": weight, "b": bias})
    found = proof(original, folded)
    assert found.ways == {"weights": 1}
    assert 0 < found.ulps <= 0.51
    assert not found.sizes
    weight[1, 2, 0, 1] = np.nextafter(np.nextafter(weight[1, 2, 0, 1], np.float32(9)), np.float32(9))
    wrong = graph([node("Conv", "x v b", "y", pads=[1] * 4)], {"v": weight, "b": bias})
    other = proof(original, wrong)  # which any tool may have lost
    assert (other.status, other.ways) == ("proved", {"weights": 1})
    assert 1 < other.ulps < 3
    refusal = proof(original, wrong, {}).refusal
    assert refusal is not None
    assert refusal.wrong
    assert refusal.entry is not None
    assert refusal.entry.at == (0, 1, 2, 1)


@pytest.mark.parametrize("group", [1, 2])
def test_a_weight_is_compared_part_by_part(group: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large one needs little memory so, and what is wrong is named by its place in the whole."""
    monkeypatch.setattr(layers, "PART", 7)
    w = np.random.default_rng(0).normal(size=(6, 4 // group, 1, 1)).astype(np.float32)
    x = [2, 4, 5, 5]
    nodes = [node("Conv", "x w", "c", group=group), node("Mul", "c s", "y")]
    original = graph(nodes, {"w": w, "s": np.float32(3)}, x)

    def folded(weight: Any) -> onnx.ModelProto:
        return graph([node("Conv", "x w", "y", group=group)], {"w": weight}, x)

    right = proof(original, folded(3 * w), {"c": None})
    assert (right.status, right.ways) == ("proved", {"weights": 1})
    assert right.ulps <= 0.5
    wrong = 3 * w
    wrong[1, 1] *= 1 + 1e-6
    wrong[5, 0] *= 1.5
    refusal = proof(original, folded(wrong), {"c": None}).refusal
    assert refusal is not None
    assert "2 of" in str(refusal)
    assert refusal.entry is not None
    assert refusal.entry.at == ((0, 5, 0, 0) if group == 1 else (1, 2, 0, 0))
    assert refusal.entry.value == wrong[5, 0, 0, 0]


def mutants(model: onnx.ModelProto, rng: np.random.Generator) -> list[tuple[str, onnx.ModelProto]]:
    """Each a copy that computes something else: numbers, attributes, operators, edges."""
    found = []

    def copy(what: str) -> onnx.GraphProto:
        other = onnx.ModelProto()
        other.CopyFrom(model)
        found.append((what, other))
        return other.graph

    for i, tensor in enumerate(model.graph.initializer):
        value = numpy_helper.to_array(tensor)
        if value.dtype.kind != "f":
            continue
        for what in ("larger", "one entry", "zero", "rows"):
            moved = value.copy()
            flat = moved.reshape(-1)
            if what == "larger":
                moved = (value * np.float32(1.01)).astype(value.dtype)
            elif what == "rows":
                moved = np.ascontiguousarray(value[::-1]) if value.ndim else value
            else:
                flat[rng.integers(flat.size)] *= 0 if what == "zero" else -1
            if not np.array_equal(moved, value):
                changed = copy(f"{what} of {tensor.name}").initializer[i]
                changed.CopyFrom(numpy_helper.from_array(moved, tensor.name))
    for i, one in enumerate(model.graph.node):
        swaps = {"Relu": "Abs", "LeakyRelu": "Elu", "MaxPool": "AveragePool"}
        if one.op_type in swaps:
            copy(f"{one.op_type} replaced").node[i].op_type = swaps[one.op_type]
        if one.op_type in ("Relu", "LeakyRelu", "Clip"):
            copy(f"{one.op_type} gone").node[i].CopyFrom(
                helper.make_node("Identity", one.input[:1], one.output, name=one.name)
            )
        for j, attribute in enumerate(one.attribute):
            if attribute.name == "alpha" and one.op_type == "LeakyRelu":
                copy("slope").node[i].attribute[j].f += 1e-4
    return found


def test_mutants_are_not_proved() -> None:
    count = 0
    for seed in range(2):
        original = net(seed)
        folded, _ = bnfold.fold_onnx(original, verify=False)
        for what, mutant in mutants(folded, np.random.default_rng(seed)):
            found = proof(original, mutant)
            assert found.status != "proved", (seed, what, str(found))
            count += 1
    assert count >= 60


# -- what could lead a proof astray


def test_a_bound_that_random_numbers_do_not_reach_is_met() -> None:
    """A Clip at 1e4 behind a Conv of small weights."""
    w = np.full((4, 3, 1, 1), 1e-2, np.float32)
    stored = {"w": w, "low": np.float32(-1e4), "high": np.float32(1e4)}
    original = graph([node("Conv", "x w", "c"), node("Clip", "c low high", "y")], stored)
    without = graph([node("Conv", "x w", "y")], stored)
    assert proof(original, without).status == "refuted"


def test_a_bound_that_nothing_reaches_is_undecided() -> None:
    stored = {"low": np.float32(-2), "high": np.float32(2)}
    original = graph([node("Sigmoid", "x", "s"), node("Clip", "s low high", "y")], stored)
    assert proof(original, graph([node("Sigmoid", "x", "y")], stored)).status == "undecided"


def test_rows_of_a_table_that_one_run_does_not_read_are_undecided() -> None:
    rng = np.random.default_rng(0)
    table, scale = rng.normal(size=(9, 4)).astype(np.float32), np.float32(2)
    nodes = [node("Gather", "t x", "g"), node("Mul", "g s", "y")]
    original = graph(nodes, {"t": table, "s": scale}, [2, 3], TensorProto.INT64)
    moved = 2 * table
    moved[7] = 0
    other = graph([node("Gather", "t x", "y")], {"t": moved}, [2, 3], TensorProto.INT64)
    assert proof(original, other).status == "undecided"


def test_another_rounding_of_a_pool_shows_at_the_true_sizes_only() -> None:
    x, pool = [1, 3, 112, 112], {"kernel_shape": [3, 3], "strides": [2, 2]}
    original = graph([node("MaxPool", "x", "y", **pool)], {}, x)
    assert proof(original, graph([node("MaxPool", "x", "y", ceil_mode=1, **pool)], {}, x)).status == "refuted"


def test_a_flatten_of_all_shows_where_the_batch_is_not_one() -> None:
    x = ["N", 3, 4, 4]
    original = graph([node("Flatten", "x", "y")], {}, x)
    assert proof(original, graph([node("Flatten", "x", "y", axis=0)], {}, x)).status == "refuted"


def test_a_padded_conv_takes_no_shift_of_what_it_reads() -> None:
    rng = np.random.default_rng(0)
    w, t = rng.normal(size=(4, 3, 3, 3)).astype(np.float32), np.float32(0.5)
    bias = (w.astype(np.float64) * 0.5).sum((1, 2, 3)).astype(np.float32)
    for pads in ([0] * 4, [1] * 4):
        original = graph([node("Add", "x t", "a"), node("Conv", "a w", "y", pads=pads)], {"t": t, "w": w})
        moved = graph([node("Conv", "x w b", "y", pads=pads)], {"w": w, "b": bias})
        assert proof(original, moved).status == ("refuted" if any(pads) else "proved")


def test_inputs_with_a_default_are_inputs_and_keep_it() -> None:
    def model(value: float, listed: bool) -> onnx.ModelProto:
        made = graph([node("Mul", "x s", "y")], {"s": np.float32(value)})
        if listed:
            made.graph.input.append(helper.make_tensor_value_info("s", TensorProto.FLOAT, []))
        return made

    assert proof(model(2, True), model(2, True)).status == "proved"
    assert proof(model(2, True), model(3, True)).status == "refuted"
    assert proof(model(2, True), model(2, False)).status == "refuted"


def test_one_body_means_another_thing_in_another_opset() -> None:
    """Softmax of opset 11 runs over all axes from the given one on."""
    body = helper.make_graph(
        [helper.make_node("Softmax", ["x"], ["o"], axis=1)], "b", [], [onnx.ValueInfoProto(name="o")]
    )
    nodes = [helper.make_node("If", ["c"], ["y"], name="if", then_branch=body, else_branch=body)]
    old, new = (graph(nodes, {}, opset=opset) for opset in (11, 13))
    for made in (old, new):
        made.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    assert proof(old, old).status == "proved"
    assert proof(old, new).status != "proved"


def test_a_body_may_leave_an_output_out() -> None:
    """No runtime takes such a model, but a fold of it is not wrong for that."""

    def model(first: onnx.NodeProto) -> onnx.ModelProto:
        outputs = [onnx.ValueInfoProto(name=name) for name in ("o", "")]
        body = helper.make_graph([first, node("Relu", "n", "o")], "b", [], outputs)
        nodes = [node("If", "c", "y z", then_branch=body, else_branch=body)]
        made = graph(nodes, {"one": np.float32(1)})
        made.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
        return made

    same, other = model(node("Identity", "x", "n")), model(node("Mul", "x one", "n"))
    assert proof(same, other).status != "refuted"


def test_integers_are_compared_as_such() -> None:
    big = np.full((3, 3), 16777217, np.int32)
    original = graph([node("MatMul", "x w", "m"), node("Cast", "m", "y", to=1)], {"w": big}, [2, 3], 6)
    other = graph([node("MatMul", "x w", "m"), node("Cast", "m", "y", to=1)], {"w": big - 1}, [2, 3], 6)
    assert proof(original, other).status != "proved"


def test_random_numbers_are_never_proved_to_be_equal() -> None:
    original = graph([node("RandomNormalLike", "x", "r"), node("Add", "x r", "y")], {})
    assert proof(original, original).status != "proved"


@pytest.mark.parametrize(("p", "q", "status"), [(2.0, 0.0, "proved"), (-2.0, 0.0, ""), (2.0, 1.0, "")])
def test_a_given_claim_has_to_hold(p: float, q: float, status: str) -> None:
    """A factor of 2 that moves from behind a Relu to before it."""
    w = np.random.default_rng(0).normal(size=(4, 3, 1, 1)).astype(np.float32)
    original = graph(
        [node("Conv", "x w", "c"), node("Relu", "c", "r"), node("Mul", "r two", "y")],
        {"w": w, "two": np.float32(2)},
    )
    folded = graph([node("Conv", "x w", "c"), node("Relu", "c", "y")], {"w": 2 * w})
    found = proof(original, folded, {"c": Image("c", p, q), "r": Image("y", 2.0)})
    assert (found.status == "proved") == bool(status), str(found)


def test_what_one_channel_has_met_says_nothing_of_another() -> None:
    """Tanh of the last column is 1 for all inputs of usual size, whatever its weights are."""
    rng = np.random.default_rng(0)
    w, b = rng.normal(size=(3, 4)).astype(np.float32), np.float32([0, 0, 0, 1e5])
    nodes = [node("Gemm", "x w b", "g"), node("Tanh", "g", "y")]
    original = graph(nodes, {"w": w, "b": b}, [2, 3])
    moved = w.copy()
    moved[:, 3] *= -2
    assert proof(original, graph(nodes, {"w": moved, "b": b}, [2, 3])).status != "proved"
    assert proof(original, graph(nodes, {"w": 2 * w, "b": b}, [2, 3])).status == "refuted"


def test_a_maximum_that_is_hardly_ever_negative() -> None:
    """Celu is nothing for numbers above zero, and of 3 x 3 numbers one is nearly always."""
    x, pool = [2, 3, 5, 5], {"kernel_shape": [3, 3]}
    original = graph(
        [node("Celu", "x", "c"), node("MaxPool", "x", "m", **pool), node("Add", "m z", "y")],
        {"z": np.float32(0)},
        x,
    )
    other = graph(
        [node("Celu", "x", "c"), node("MaxPool", "c", "m", **pool), node("Add", "m z", "y")],
        {"z": np.float32(0)},
        x,
    )
    assert proof(original, other).status == "refuted"


def scaled(
    op: str, inputs: str = "", c: tuple[float, float] = (0.7, 1.3), **attributes: Any
) -> onnx.ModelProto:
    """Two numbers, times one each, and an operator that jumps."""
    stored = {"c": np.float32(c), "s": np.float32(0.5), "z": np.int8(3), "k": np.float32(0.3)}
    nodes = [node("Mul", "x c", "m"), node(op, f"m {inputs}".strip(), "j", **attributes)]
    return graph([*nodes, node("Cast", "j", "y", to=TensorProto.FLOAT)], stored, [1, 2], opset=18)


@pytest.mark.parametrize(
    ("op", "inputs", "attributes"),
    [
        *((op, "", {}) for op in ("Floor", "Ceil", "Round", "Hardmax", "ArgMax")),
        ("Greater", "k", {}),
        ("QuantizeLinear", "s z", {}),
        ("Cast", "", {"to": TensorProto.INT32}),
        ("ThresholdedRelu", "", {"alpha": 0.4}),
    ],
)
def test_what_jumps_does_not_tell_what_it_reads(op: str, inputs: str, attributes: dict[str, Any]) -> None:
    """A thousandth more moves where it jumps, and hardly any number is in between."""
    original = scaled(op, inputs, **attributes)
    assert proof(original, scaled(op, inputs, **attributes)).status == "proved"
    assert proof(original, scaled(op, inputs, (0.7007, 1.3), **attributes)).status != "proved"
    renamed = scaled(op, inputs, **attributes)
    renamed.graph.node[0].output[0] = renamed.graph.node[1].input[0] = "another"
    assert proof(original, renamed).status == "proved"


@pytest.mark.parametrize("op", ["Exp", "LogSoftmax", "ReduceLogSumExp", "ReduceMax", "Softmax", "Softplus"])
def test_an_entry_that_never_counts_is_not_proved(op: str) -> None:
    """What is far below the others is nothing, whatever its weights are."""
    rng = np.random.default_rng(0)
    w, b = rng.normal(size=(3, 4)).astype(np.float32), np.float32([0, 0, 0, -1e7])
    attributes = {"axis": 1} if "oftmax" in op else {"keepdims": 1} if "Reduce" in op else {}

    def model(weight: Any, between: str) -> onnx.ModelProto:
        nodes = [node("Gemm", "x w b", between), node(op, between, "y", **attributes)]
        return graph(nodes, {"w": weight, "b": b}, [2, 3])

    other = w.copy()
    other[:, 3] *= -2
    assert proof(model(w, "g"), model(other, "h")).status != "proved"
    b[3] = 0
    assert proof(model(w, "g"), model(w, "h")).status == "proved"


def test_of_an_output_that_nobody_reads_nothing_is_claimed() -> None:
    """The places of the largest numbers would not tell that these are the same."""
    stored = {"k": np.int64([2]), "c": np.float32(2)}
    top = node("TopK", "x k", "v i", axis=1)
    original = graph([top, node("Mul", "v c", "y")], stored, [3, 4])
    top = node("TopK", "m k", "y i", axis=1)
    assert proof(original, graph([node("Mul", "x c", "m"), top], stored, [3, 4])).status == "proved"


@pytest.mark.parametrize(("off", "status"), [(0.0, "proved"), (3e-6, "refuted")])
def test_a_constant_of_the_type_of_what_flows_is_exact(off: float, status: str) -> None:
    """Exporters write a bias of zeros so. It is computed of stored numbers only, and without rounding."""
    rng = np.random.default_rng(1)
    w = rng.normal(size=(4, 3, 1, 1)).astype(np.float32)
    zeros = [node("CastLike", "z x", "c"), node("Shape", "w", "n", end=1), node("Expand", "c n", "b")]
    stored = {"w": w, "z": np.float16(0)}
    one = graph([*zeros, node("Conv", "x w b", "y")], stored, X)
    two = graph([node("Conv", "x w b", "y")], {"w": w, "b": np.array([0, 0, off, 0], np.float32)}, X)
    assert prove(load(one), load(two)).status == status
