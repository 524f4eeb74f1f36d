"""Evaluators, wider copies and inputs, each against numbers known otherwise."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from bnfold.errors import UsageError
from bnfold.onnx_graph.file.loaded import load
from bnfold.onnx_graph.run import evaluators as run
from bnfold.onnx_graph.run import inputs, reference
from bnfold.onnx_graph.run import widened as precision

RNG = np.random.default_rng(7)
FLOAT, DOUBLE, HALF, BRAIN = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16


def value(name: str, shape: Any, typ: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, typ, shape)


def model(
    nodes: list[onnx.NodeProto],
    ins: list[onnx.ValueInfoProto],
    outs: list[onnx.ValueInfoProto],
    weights: dict[str, Any] | None = None,
    *,
    opset: int = 18,
    ir: int = 8,
    domains: tuple[str, ...] = (),
) -> onnx.ModelProto:
    stored = [onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in (weights or {}).items()]
    graph = helper.make_graph(nodes, "g", ins, outs, stored)
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir)


def one(
    op: str, shapes: list[tuple[int, ...]], *, opset: int = 18, typ: int = FLOAT, **attrs: Any
) -> onnx.ModelProto:
    names = [f"i{k}" for k in range(len(shapes))]
    node = helper.make_node(op, names, ["y"], **attrs)
    return model(
        [node],
        [value(n, s, typ) for n, s in zip(names, shapes, strict=True)],
        [value("y", None, typ)],
        opset=opset,
    )


def test_relu_runs_in_onnxruntime():
    found, by = run.evaluate(load(one("Relu", [(3,)])), {"i0": np.array([-1, 0, 2], np.float32)})
    assert found["y"].tolist() == [0, 0, 2]
    assert by.startswith("onnxruntime ")


def test_threads_of_onnxruntime_do_not_wait_in_a_loop():
    options = run.OnnxRuntime(load(one("Relu", [(3,)])))._session.get_session_options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


@pytest.mark.parametrize(
    ("op", "shapes", "attrs"),
    [
        ("Conv", [(2, 6, 11, 9), (4, 6, 3, 2), (4,)], {"strides": [2, 1], "pads": [1, 0, 2, 1]}),
        ("Conv", [(1, 6, 9, 9), (9, 2, 3, 3)], {"group": 3, "dilations": [2, 1]}),
        (
            "Conv",
            [(2, 5, 8, 7), (10, 1, 3, 3), (10,)],
            {"group": 5, "auto_pad": "SAME_UPPER", "strides": [3, 2]},
        ),
        ("Conv", [(1, 3, 12), (4, 3, 4)], {"auto_pad": "SAME_LOWER"}),
        ("Conv", [(1, 2, 4, 5, 6), (3, 2, 2, 3, 2)], {"auto_pad": "VALID", "strides": [1, 2, 2]}),
        ("ConvTranspose", [(2, 4, 5, 6), (4, 3, 3, 2), (3,)], {"strides": [2, 3], "pads": [1, 0, 1, 1]}),
        (
            "ConvTranspose",
            [(1, 6, 5, 5), (6, 2, 3, 3)],
            {"group": 3, "dilations": [2, 1], "output_padding": [1, 0], "strides": [2, 1]},
        ),
        (
            "ConvTranspose",
            [(1, 4, 5, 5), (4, 1, 3, 3)],
            {"group": 4, "strides": [2, 2], "output_shape": [10, 9]},
        ),
        ("ConvTranspose", [(1, 2, 5), (2, 3, 4)], {"strides": [2], "auto_pad": "SAME_UPPER"}),
        ("MaxPool", [(2, 3, 10, 11)], {"kernel_shape": [3, 2], "strides": [2, 3], "pads": [1, 1, 1, 0]}),
        (
            "MaxPool",
            [(1, 2, 10, 10)],
            {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1, "dilations": [1, 2]},
        ),
        ("MaxPool", [(1, 2, 7, 8)], {"kernel_shape": [2, 3], "auto_pad": "SAME_LOWER", "strides": [2, 2]}),
        ("AveragePool", [(1, 3, 9, 8)], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
        (
            "AveragePool",
            [(1, 3, 9, 8)],
            {"kernel_shape": [3, 3], "pads": [1, 0, 2, 1], "count_include_pad": 1},
        ),
        ("AveragePool", [(1, 2, 10, 10)], {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
        (
            "AveragePool",
            [(1, 2, 10)],
            {"kernel_shape": [4], "strides": [3], "pads": [1, 1], "ceil_mode": 1, "count_include_pad": 1},
        ),
        ("GlobalMaxPool", [(2, 3, 7)], {}),
        ("GlobalMaxPool", [(2, 3, 4, 5)], {}),
        ("GlobalMaxPool", [(2, 3, 4, 5, 2)], {}),
        ("GlobalAveragePool", [(2, 3, 7)], {}),
        ("GlobalAveragePool", [(2, 3, 4, 5, 2)], {}),
        ("LpPool", [(2, 3, 9, 8)], {"kernel_shape": [3, 2], "strides": [2, 1]}),
        ("InstanceNormalization", [(2, 3, 4, 5), (3,), (3,)], {}),
        ("BatchNormalization", [(2, 3, 4, 5), (3,), (3,), (3,), (3,)], {"epsilon": 1e-3}),
        ("BatchNormalization", [(4, 3), (3,), (3,), (3,), (3,)], {}),
    ],
)
def test_our_operators_equal_onnxruntime(op, shapes, attrs):
    # onnxruntime 1.23 averages counted padding wrongly: in opset 19 uneven one, in 18 with ceil_mode.
    proto = one(op, shapes, opset=19 if "ceil_mode" in attrs else 18, **attrs)
    feed = {f"i{k}": RNG.random(s).astype(np.float32) - (0.5 if k == 0 else 0) for k, s in enumerate(shapes)}
    want = run.OnnxRuntime(load(proto)).run(feed)["y"]
    (got,) = reference.evaluator(proto).run(None, feed)
    assert got.shape == want.shape
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("opset", [7, 8, 9, 13, 14, 15])
def test_batch_norm_uses_running_statistics_in_each_opset(opset):
    """onnx's own takes batch statistics in 9 to 13 and fails in 7 and 8."""
    proto = one("BatchNormalization", [(2, 3, 4), (3,), (3,), (3,), (3,)], opset=opset)
    x, s, b, m, v = (RNG.random(shape).astype(np.float32) for shape in [(2, 3, 4), *[(3,)] * 4])
    (got,) = reference.evaluator(proto).run(None, {"i0": x, "i1": s, "i2": b, "i3": m, "i4": v})
    want = (x - m[:, None]) / np.sqrt(v[:, None] + 1e-5) * s[:, None] + b[:, None]
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


def test_batch_norm_in_training_takes_the_batch_statistics():
    proto = one("BatchNormalization", [(8, 3, 4), (3,), (3,), (3,), (3,)], opset=15, training_mode=1)
    x = RNG.standard_normal((8, 3, 4)).astype(np.float32)
    feed = {"i0": x, **{f"i{k}": np.ones(3, np.float32) for k in range(1, 5)}}
    (got,) = reference.evaluator(proto).run(None, feed)
    np.testing.assert_allclose(got.mean((0, 2)), 1, atol=1e-5)
    np.testing.assert_allclose(got.var((0, 2)), 1, atol=1e-3)


def test_opset_1_batch_norm_and_add_with_axis():
    weights = {
        n: np.array(a, np.float32)
        for n, a in {"s": [1, 2], "b": [0, 1], "m": [1, 1], "v": [4, 1], "c": [10, 20]}.items()
    }
    nodes = [
        helper.make_node(
            "BatchNormalization",
            ["x", "s", "b", "m", "v"],
            ["n"],
            is_test=1,
            consumed_inputs=[0, 0, 0, 1, 1],
            epsilon=0.0,
        ),
        helper.make_node("Add", ["n", "c"], ["y"], axis=1, broadcast=1),
    ]
    proto = model(nodes, [value("x", [1, 2, 3])], [value("y", None)], weights, opset=1, ir=3)
    found, by = run.evaluate(load(proto), {"x": np.full((1, 2, 3), 3, np.float32)})
    assert by == f"onnx reference evaluator {onnx.__version__}"
    np.testing.assert_allclose(found["y"], np.array([11, 25], np.float32)[None, :, None] * np.ones((1, 2, 3)))


def test_float64_conv_falls_back_to_the_reference():
    x, w = RNG.random((1, 3, 6, 6)), RNG.random((4, 3, 3, 3))
    found, by = run.evaluate(load(one("Conv", [x.shape, w.shape], typ=DOUBLE)), {"i0": x, "i1": w})
    want = sum(
        np.einsum("ncij,mc->nmij", x[:, :, i : i + 4, j : j + 4], w[:, :, i, j])
        for i in range(3)
        for j in range(3)
    )
    assert by.startswith("onnx reference evaluator")
    assert np.abs(found["y"] - want).max() < 1e-14


def test_bfloat16_goes_into_onnxruntime_as_bits():
    proto = model(
        [helper.make_node("Cast", ["x"], ["y"], to=FLOAT)], [value("x", [2], BRAIN)], [value("y", [2])]
    )
    found, by = run.evaluate(load(proto), {"x": np.array([1.5, -3], ml_dtypes.bfloat16)})
    assert found["y"].tolist() == [1.5, -3]
    assert by.startswith("onnxruntime")


def test_a_newer_ir_version_is_run_as_an_older_one():
    proto = one("Relu", [(2,)])
    proto.ir_version = 99
    found, by = run.evaluate(load(proto), {"i0": np.array([-1, 1], np.float32)})
    assert found["y"].tolist() == [0, 1]
    assert by.startswith("onnxruntime")
    assert proto.ir_version == 99


@pytest.mark.parametrize(("index", "found"), [(-1, 5.0), (3, None), (-(1 << 62), None)])
def test_an_index_out_of_range_is_refused_at_once(index, found):
    proto = one("GatherElements", [(2, 3), (1, 1)], axis=1)
    proto.graph.input[1].type.tensor_type.elem_type = TensorProto.INT64
    feed = {"i0": np.arange(3, 9, dtype=np.float32).reshape(2, 3), "i1": np.array([[index]])}
    for make in run.EVALUATORS:
        if found is None:
            with pytest.raises(run.CannotRun, match=r"[oO]ut of"):
                make(load(proto)).run(feed)
        else:
            assert make(load(proto)).run(feed)["y"].tolist() == [[found]]


def test_neither_evaluator_knows_a_custom_operator():
    node = helper.make_node("Mystery", ["x"], ["y"], domain="org.example")
    proto = model([node], [value("x", [2])], [value("y", [2])], domains=("org.example",))
    with pytest.raises(
        run.CannotRun, match=r"(?s)onnxruntime: .*Mystery.*onnx reference evaluator: .*Mystery"
    ):
        run.evaluate(load(proto), {"x": np.zeros(2, np.float32)})


def test_without_onnxruntime_the_reference_runs(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    found, by = run.evaluate(load(one("Relu", [(2,)])), {"i0": np.array([-1, 1], np.float32)})
    assert found["y"].tolist() == [0, 1]
    assert by.startswith("onnx reference evaluator")


def test_external_data_runs_from_a_path_and_in_the_reference(tmp_path):
    w = RNG.standard_normal((4, 64)).astype(np.float32)
    proto = model(
        [helper.make_node("Add", ["x", "w"], ["y"])], [value("x", [4, 64])], [value("y", [4, 64])], {"w": w}
    )
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    x = RNG.standard_normal((4, 64)).astype(np.float32)
    for make in run.EVALUATORS:
        np.testing.assert_array_equal(make(load(tmp_path / "m.onnx")).run({"x": x})["y"], x + w)
    copy = load(tmp_path / "m.onnx").copy()
    copy.proto.graph.node[0].op_type = "Mul"
    np.testing.assert_array_equal(run.OnnxRuntime(copy).run({"x": x})["y"], x * w)


def test_float32_copy_of_half_models_has_the_same_numbers_and_reaches_everywhere():
    w = RNG.standard_normal(3).astype(np.float16)
    then = helper.make_graph(
        [
            helper.make_node("Constant", [], ["k"], value=onnx.numpy_helper.from_array(w, "k")),
            helper.make_node("Add", ["h", "k"], ["t"]),
        ],
        "then",
        [],
        [value("t", [3], HALF)],
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["h"], ["e"])], "else", [], [value("e", [3], HALF)]
    )
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=HALF),
        helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other),
    ]
    proto = model(nodes, [value("x", [3]), value("c", [], TensorProto.BOOL)], [value("y", [3], HALF)])
    loaded = load(proto)
    assert precision.working_type(loaded) == "float16"
    wide = precision.float32_copy(loaded)
    assert precision.working_type(wide) == "float32"
    x = np.array([1 / 3, 2, 3], np.float32)
    found, by = run.evaluate(wide, {"x": x, "c": np.array(True)})
    assert by.startswith("onnxruntime")
    np.testing.assert_array_equal(found["y"], x + w.astype(np.float32))  # 1/3 was not rounded to float16
    assert loaded.proto.graph.node[0].attribute[0].i == HALF
    exact, _ = run.evaluate(precision.float64_copy(loaded), {"x": x.astype(np.float64), "c": np.array(True)})
    assert exact["y"].dtype == np.float64


def test_seconds_grow_with_the_work():
    small, large = one("Conv", [(1, 8, 8, 8), (8, 8, 3, 3)]), one("Conv", [(1, 8, 80, 80), (8, 8, 3, 3)])
    times = [
        reference.seconds(
            m, {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in m.graph.input}
        )
        for m in (small, large)
    ]
    assert times[1] / times[0] == pytest.approx((78 / 6) ** 2)


# Inputs


def wanted_by(ins: list[onnx.ValueInfoProto], weights: dict[str, Any] | None = None) -> list[inputs.Input]:
    node = helper.make_node("Identity", [ins[0].name], ["out"])
    return inputs.wanted(load(model([node], ins, [value("out", None)], weights, ir=3)))


def test_generated_inputs_are_reproducible_and_in_range():
    names = [
        ("x", ["N", 3, None, "W"], FLOAT),
        ("ids", ["N", "L"], TensorProto.INT64),
        ("m", ["N"], TensorProto.BOOL),
        ("u", [5], TensorProto.UINT8),
        ("b", [4], BRAIN),
    ]
    wanted = wanted_by([value(n, s, t) for n, s, t in names])
    first, again = next(inputs.generate(wanted, 3)), next(inputs.generate(wanted, 3))
    assert all(np.array_equal(first[n], again[n]) for n in first)
    assert first["x"].shape == (2, 3, 224, 224)
    assert abs(first["x"].mean()) < 0.01
    assert abs(first["x"].std() - 1) < 0.01
    assert set(first["ids"].ravel().tolist()) == {0, 1}
    assert first["ids"].shape == (2, 224)
    assert first["m"].dtype == bool
    assert first["b"].dtype == ml_dtypes.bfloat16
    assert not np.array_equal(first["x"], next(inputs.generate(wanted, 4))["x"])
    shapes = [f["x"].shape for f in inputs.generate(wanted, 0, {"x": (5, 3, 7, 9)})]
    assert shapes[0] == (5, 3, 7, 9)
    assert next(inputs.generate(wanted, 0, {"x": (5, 3, 7, 9)}))["m"].shape == (5,)  # N is 5 everywhere
    positive = next(inputs.generate(wanted, 0, positive=True))["x"]
    assert 0 <= positive.min() < positive.max() <= 1


def guessed(ins: list[onnx.ValueInfoProto], **more: Any) -> list[dict[str, tuple[int, ...]]]:
    feeds = inputs.generate(wanted_by(ins), **more)
    return [{name: array.shape for name, array in feed.items()} for feed in feeds]


def test_guesses_are_bounded_in_all_inputs_together():
    largest = 1 << 22  # numbers: 17 MB in float32
    cases = [
        [value("x", ["N", 4, "D", "H", "W"])],
        [value("x", ["N", "T", 3, "H", "W"])],
        [value(f"x{i}", ["N", 3, "H", "W"]) for i in range(12)],
        [value("x", ["A", "B", "C", "D", "E", "F"])],
    ]
    for ins in cases:
        found = guessed(ins)
        assert len(found) > 4
        assert all(sum(np.prod(shape) for shape in guess.values()) <= largest for guess in found)
    assert guessed([value("x", ["N", 3, "H", "W"])])[0] == {"x": (2, 3, 224, 224)}
    # What is fixed is fixed: of guesses that are all too large it is the smallest.
    assert guessed([value("x", ["N", 3, 1500, 1500])]) == [{"x": (1, 3, 1500, 1500)}]
    assert guessed([value("x", ["N", 2, 2000, 2000])], shapes={"x": (3, 2, 2000, 2000)})[0]["x"][0] == 3
    # The channels of the first convolution count as well.
    assert guessed([value("x", ["N", 1, "D", "H", "W"])], growth=128)[0] == {"x": (2, 1, 32, 32, 32)}


def test_growth_is_that_of_the_first_convolution():
    def grown(weight: tuple[int, ...], **attrs: Any) -> float:
        node = helper.make_node("Conv", ["x", "w"], ["y"], **attrs)
        ins = [value("x", ["N", None, "H", "W"])]
        return inputs.growth(load(model([node], ins, [value("y", None)], {"w": np.ones(weight, np.float32)})))

    assert grown((64, 1, 3, 3)) == 64
    assert grown((64, 4, 3, 3), strides=[2, 2]) == 4
    assert grown((64, 1, 3, 3), group=64) == 1
    assert inputs.growth(load(one("Relu", [(3,)]))) == 1


def test_sound_has_long_guesses_and_names_agree():
    ins = [value("x", ["N", 1, "T"]), value("mask", ["N", "T"], TensorProto.INT64), value("z", ["N", "K", 5])]
    found = guessed(ins)
    assert {guess["x"] for guess in found[-4:]} == {(b, 1, t) for b in (1, 2) for t in (4096, 16000)}
    assert all(guess["x"][2] == guess["mask"][1] and guess["z"][1] <= 256 for guess in found)
    assert max(guess["ids"][1] for guess in guessed([value("ids", ["N", "L"], TensorProto.INT64)])) == 256
    assert max(guess["x"][3] for guess in guessed([value("x", ["N", 3, "H", "W"])])) == 256


def test_a_guess_that_memory_is_too_small_for_is_left_out(monkeypatch):
    random = inputs._random

    def scarce(rng: Any, i: inputs.Input, shape: tuple[int, ...], positive: bool) -> Any:
        if np.prod(shape) > 20000:
            raise MemoryError
        return random(rng, i, shape, positive)

    monkeypatch.setattr(inputs, "_random", scarce)
    assert guessed([value("x", ["N", 3, "H", "W"])])[0] == {"x": (1, 3, 64, 64)}
    with pytest.raises(inputs.NoGuess, match="150,528 numbers do not fit into memory"):
        guessed([value("x", [1, 3, 224, 224])])


def test_inputs_with_initializers_are_not_fed():
    assert [i.name for i in wanted_by([value("x", [2]), value("w", [2])], {"w": np.ones(2, np.float32)})] == [
        "x"
    ]


def test_given_inputs_from_files(tmp_path):
    wanted = wanted_by([value("x", [2, "L"]), value("k", [1], TensorProto.INT64)])
    x, k = np.arange(6).reshape(2, 3), np.array([4])
    np.savez(tmp_path / "a.npz", x=x.astype(np.float64), k=k)
    np.save(tmp_path / "x.npy", x)
    folder = tmp_path / "set"
    folder.mkdir()
    for i, array in enumerate((x.astype(np.float32), k)):
        (folder / f"input_{i}.pb").write_bytes(
            onnx.numpy_helper.from_array(array, f"other/{i}").SerializeToString()
        )
    for path in (tmp_path / "a.npz", folder):
        feed = inputs.feed_from(wanted, path)
        assert feed["x"].tolist() == x.tolist()
        assert feed["x"].dtype == np.float32
        assert feed["k"].tolist() == [4]
    assert inputs.feed_from(wanted[:1], tmp_path / "x.npy")["x"].tolist() == x.tolist()
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 not really")
    for name in ("bad.npz", "none.npz"):
        with pytest.raises(UsageError, match=name):
            inputs.load_inputs(tmp_path / name)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"no value was given for the input 'x'.*x: float32 \(2, L\)"),
        ({"x": np.zeros((2, 3)), "k": [1], "z": 1}, "no input 'z' to feed"),
        ({"x": np.zeros(2), "k": [1]}, r"'x' takes float32 \(2, L\).*1 axes instead of 2"),
        ({"x": np.zeros((3, 3)), "k": [1]}, "axis 0 is 3 instead of 2"),
        ({"x": np.zeros((2, 3)), "k": [1.5]}, r"'k' takes int64 \(1\), but float64 was given"),
    ],
)
def test_given_inputs_that_do_not_fit_are_named(given, message):
    wanted = wanted_by([value("x", [2, "L"]), value("k", [1], TensorProto.INT64)])
    with pytest.raises(UsageError, match=message):
        inputs.feed_from(wanted, given)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"q": (1,)}, r"'q', but the model's inputs are \['x', 'y'\]"),
        ({"x": (1, 4)}, "axis 1 is 4 instead of 3"),
        ({"x": (1, 3), "y": (2,)}, "'N' is 2 here and 1 in the input 'x'"),
    ],
)
def test_shapes_that_contradict_the_model_are_named(shapes, message):
    wanted = wanted_by([value("x", ["N", 3]), value("y", ["N"])])
    with pytest.raises(UsageError, match=message):
        next(inputs.generate(wanted, 0, shapes))


def test_our_conv_follows_onnx_where_both_can():
    """The stock evaluator, slow and correct here, agrees bit for bit in shape and to rounding in value."""
    proto = one("Conv", [(1, 2, 5, 5), (3, 2, 3, 3)], typ=DOUBLE, pads=[1, 1, 1, 1])
    feed = {"i0": RNG.random((1, 2, 5, 5)), "i1": RNG.random((3, 2, 3, 3))}
    (ours,), (theirs,) = reference.evaluator(proto).run(None, feed), ReferenceEvaluator(proto).run(None, feed)
    np.testing.assert_allclose(ours, theirs, rtol=1e-14)
