"""Damaged models: one clear error or a fold, never another exception."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from onnx import helper

from bnfold.api.convert import convert
from bnfold.api.fold_onnx import fold_loaded
from bnfold.cli.app import main
from bnfold.errors import BnfoldError
from bnfold.fold.solve import WASTE, solve
from bnfold.onnx_graph.file.loaded import load
from bnfold.onnx_graph.model import infer as infer_module
from bnfold.onnx_graph.read import read
from bnfold.options import Check, Fold
from tests.onnx_graph.build import Build
from tests.onnx_graph.cases.patterns import PATTERNS
from tests.onnx_graph.cases.random_graphs import random_model
from tests.onnx_graph.cases.random_sums import random_sums
from tests.onnx_graph.damage import garble
from tests.onnx_graph.samples import everything

BATCH = 150


@pytest.mark.parametrize("seed", range(4))
def test_damaged_models_end_in_one_clear_error_or_in_a_fold(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    path = tmp_path / "model.onnx"
    outcomes = {"folded": 0, "refused": 0}
    messages: list[str] = []
    for _ in range(BATCH):
        content = bytearray(random_model(int(rng.integers(1000)), 8).SerializeToString())
        for _ in range(int(rng.integers(1, 6))):
            at = int(rng.integers(len(content)))
            content[at] = (
                int(rng.integers(256)) if rng.random() < 0.6 else content[at] ^ 1 << int(rng.integers(8))
            )
        if rng.random() < 0.15:
            del content[int(rng.integers(len(content))) :]
        path.write_bytes(content)
        try:
            fold_loaded(load(path), check=Check(verify=False))
            outcomes["folded"] += 1
        except BnfoldError as error:
            outcomes["refused"] += 1
            messages.append(str(error))
        assert path.read_bytes() == content
    assert all(message and "\n" not in message for message in messages)
    assert min(outcomes.values()) > BATCH // 20, outcomes


@pytest.mark.parametrize("seed", range(2))
def test_damaged_models_end_in_one_clear_error_or_in_half_precision(seed: int) -> None:
    rng = np.random.default_rng(seed)
    outcomes = {"converted": 0, "refused": 0}
    messages: list[str] = []
    for at in range(BATCH):
        content = bytearray(random_model(int(rng.integers(1000)), 8).SerializeToString())
        for _ in range(int(rng.integers(1, 4))):
            content[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
        proto = onnx.ModelProto()
        try:
            proto.ParseFromString(bytes(content))
            convert(load(proto), ("fp16", "bf16")[at % 2])
            outcomes["converted"] += 1
        except DecodeError:
            continue
        except BnfoldError as error:
            messages.append(str(error))
            outcomes["refused"] += 1
    assert all(message and "\n" not in message for message in messages)
    assert min(outcomes.values()) > BATCH // 20, outcomes


def test_a_window_larger_than_its_input_is_one_clear_error() -> None:
    """onnx's shape inference ends the process on a Slice of the negative size that follows."""
    g = Build()
    y = g.conv(g.input("x", (2, 6, 9, 11)), 8, k=3, name="conv")
    numbers = [g.const(np.array(v, np.int64)) for v in ([1], [-1], [3])]
    g.output(g.bn(g.op("Slice", y, *numbers)))
    model = g.model()
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_value = 1
    with pytest.raises(BnfoldError, match=r"conv.*window is larger than its input"):
        fold_loaded(load(model), check=Check(verify=False))


@pytest.mark.parametrize("fold", [Fold(), Fold(target="tensorrt"), Fold(precision="fp16")])
def test_functions_that_call_each_other_twice_are_read_once_each(fold: Fold) -> None:
    """Inlined they are 2**60 nodes, which neither shape inference nor any runtime may be asked to walk."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("test", 1)]
    pair = (("x", "t"), ("t", "y"))
    bodies = [[helper.make_node("Relu", ["x"], ["y"])]]
    bodies += [[helper.make_node(f"F{i}", [x], [y], domain="test") for x, y in pair] for i in range(60)]
    g = Build(17, ir=8)
    y = g.bn(g.conv(g.input("x", (1, 4, 8, 8)), 4, name="conv"), name="bn")
    g.output(y)
    model = g.model()
    functions = [helper.make_function("test", f"F{i}", ["x"], ["y"], b, opsets) for i, b in enumerate(bodies)]
    model.functions.extend(functions)
    model.opset_import.append(opsets[1])
    model.graph.node.append(helper.make_node("F60", [y], ["z"], domain="test"))
    model.graph.output[0].name = "z"
    folded, report = fold_loaded(load(model), fold)
    assert [node.op_type for node in folded.proto.graph.node if node.op_type != "Cast"] == ["Conv", "F60"]
    assert report.verification.status == "not run"
    assert "too often" in report.verification.reason


def _many(count: int, behind: str) -> onnx.ModelProto:
    """Batch norms that all read one tensor, and what is behind them."""
    g = Build()
    x = g.conv(g.input("x", (1, 4, 5, 5)), 4, name="conv")
    ys = [g.bn(x, name=f"bn{i}") for i in range(count)]
    if behind == "Relu":
        g.output(*(g.op("Relu", y) for y in ys))
    elif behind == "Add":
        while len(ys) > 1:
            ys = [g.op("Add", ys[0], ys[1]), *ys[2:]]
        g.output(*ys)
    else:
        y = g.op(behind.removesuffix(", Conv"), *ys)
        g.output(g.conv(y, 4, name="last") if behind.endswith("Conv") else y)
    return g.model()


@pytest.mark.parametrize("behind", ["Relu", "Sum", "Max", "Add"])
def test_the_work_for_batch_norms_that_read_one_tensor_is_linear(behind: str) -> None:
    few, many = (solve(read(load(_many(count, behind)))).calls for count in (50, 200))
    assert many < 5 * few


def test_tries_that_come_to_nothing_are_bounded() -> None:
    graph = read(load(_many(300, "Sum, Conv")))
    plan = solve(graph)
    assert plan.calls < 2.2 * WASTE * len(graph.nodes)  # two runs
    assert all(entry.reason or entry.outcome == "folded" for entry in plan.entries)


def test_weights_beyond_their_range_do_not_take_a_run_each() -> None:
    g = Build(opset=17, signs="positive")
    y = g.input("x", (1, 4, 5, 5))
    for i in range(64):
        y = g.op("Relu", g.bn(g.conv(y, 4, name=f"conv{i}"), name=f"bn{i}"))
    g.output(y)
    model = g.model()
    for tensor in model.graph.initializer:
        if tensor.name.startswith("conv") and len(tensor.dims) == 4:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(tensor.dims, 3e38, np.float32), tensor.name))
        elif tensor.name.startswith("bn") and "scale" in tensor.name:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(tensor.dims, 9e9, np.float32), tensor.name))
    plan = solve(read(load(model)))
    assert all("would overflow float32" in entry.reason for entry in plan.entries)
    assert len(plan.entries) == 64
    assert plan.calls < 64 * 2 * 10


def test_a_weight_computed_by_thousands_of_additions_is_a_constant() -> None:
    g = Build()
    x, w = g.input("x", (1, 4, 5, 5)), g.const(np.ones((4, 4, 1, 1)), "w")
    step = g.const(np.full((4, 4, 1, 1), 2.0**-12), "step")
    for _ in range(1000):
        w = g.op("Add", w, step)
    g.output(g.bn(g.op("Conv", x, w)))
    folded, report = fold_loaded(load(g.model()))
    assert [node.op_type for node in folded.proto.graph.node] == ["Conv"]
    assert report.verification is not None
    assert report.verification.status == "passed"


@pytest.mark.parametrize("twice", [True, False])
def test_large_constants_are_not_computed_an_exponential_number_of_times(twice: bool) -> None:
    g = Build()
    x, w = g.input("x", (1, 512, 1, 1)), g.const(np.ones((600, 512, 1, 1)), "w")
    before = g.const(np.ones((600, 512, 1, 1)), "v")
    for _ in range(60):
        w, before = g.op("Add", w, w if twice else before), w
    g.output(g.bn(g.op("Conv", x, w)))
    assert solve(read(load(g.model()))).entries[-1].outcome == "kept"


@pytest.mark.parametrize("equal", [True, False])
def test_a_layer_called_often_gets_one_bias_for_equal_ones(equal: bool) -> None:
    g = Build()
    x = g.input("x", (1, 4, 5, 5))
    w = g.weight((4, 4, 1, 1), 4, "w")
    parameters = None
    for i in range(20):
        g.output(g.bn(g.conv(x, 4, bias=False, w=w, name=f"conv{i}"), parameters=parameters))
        parameters = list(g.nodes[-1].input[1:]) if equal else None
    folded, report = fold_loaded(load(g.model()))
    assert len(folded.proto.graph.initializer) == (2 if equal else 40)
    assert report.verification is not None
    assert report.verification.status == "passed"


def _layers() -> onnx.ModelProto:
    g = Build()
    y = g.bn(g.conv(g.input("x", (1, 4, 5, "W")), 4, name="conv"), name="bn")
    g.output(g.op("DepthToSpace", g.bn(y, name="second"), blocksize=2))
    return g.model()


def _told(model: onnx.ModelProto, folder: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    """The one line about what is wrong; "" if nothing is."""
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    status = main(["fold", str(folder / "model.onnx"), str(folder / "folded.onnx"), "--force", *flags])
    told = capsys.readouterr().err
    assert status in (0, 2)
    assert "internal error" not in told
    assert told.count("\n") == (status == 2)
    return told


def _tensor() -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(np.ones(3, np.float32), "t")


@pytest.mark.parametrize("value", ["text", [1.5, 2.5], [], ["a"], _tensor(), onnx.GraphProto(name="g")])
@pytest.mark.parametrize(
    ("node", "name"), [("bn", "epsilon"), ("conv", "group"), ("depthtospace", "blocksize")]
)
def test_an_attribute_of_another_type_is_told_by_name(
    node: str, name: str, value: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = _layers()
    damaged = next(entry for entry in model.graph.node if entry.name == node)
    others = [entry for entry in damaged.attribute if entry.name != name]
    del damaged.attribute[:]
    kind = onnx.AttributeProto.INTS if value == [] else None
    damaged.attribute.extend([*others, helper.make_attribute(name, value, attr_type=kind)])
    told = _told(model, tmp_path, capsys)
    assert f"node '{node}'" in told
    assert repr(name) in told


@pytest.mark.parametrize("size", [0, -1, 3, 1 << 40])
def test_a_block_of_any_size_ends_in_words(size: int, tmp_path: Path, capsys: Any) -> None:
    model = _layers()
    model.graph.node[-1].attribute[0].i = size
    _told(model, tmp_path, capsys, "--no-verify")


def test_names_of_sizes_need_not_be_utf_8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = _layers().SerializeToString().replace(b"\x12\x01W", b"\x12\x01\xff")
    (tmp_path / "model.onnx").write_bytes(raw)
    assert main(["fold", str(tmp_path / "model.onnx"), str(tmp_path / "folded.onnx")]) == 0
    assert not capsys.readouterr().err


def test_keys_of_data_files_need_not_be_utf_8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = _layers()
    tensor = model.graph.initializer[0]
    onnx.external_data_helper.set_external_data(tensor, "data.bin", offset=0)
    raw = model.SerializeToString().replace(b"offset", b"offs\xff\xfe")
    (tmp_path / "data.bin").write_bytes(tensor.raw_data)
    (tmp_path / "model.onnx").write_bytes(raw)
    assert main(["fold", str(tmp_path / "model.onnx"), str(tmp_path / "folded.onnx")]) == 0
    assert not capsys.readouterr().err


def test_axes_beyond_a_tensor_and_hundreds_of_axes_end_in_words(tmp_path: Path, capsys: Any) -> None:
    g = Build()
    w = g.const(np.ones((4, 4, 1, 1), np.int8), "w", dtype="int8")
    w = g.op("DequantizeLinear", w, g.const(np.ones(4), "s"), axis=0)
    g.output(g.bn(g.op("Conv", g.input("x", (1, 4, 5, 5)), w)))
    model = g.model()
    model.graph.node[0].attribute[0].i = -9
    assert "along axis -9" in _told(model, tmp_path, capsys)
    model = _layers()
    shape = model.graph.input[0].type.tensor_type.shape
    shape.dim.extend([onnx.TensorShapeProto.Dimension(dim_value=1)] * 300)
    _told(model, tmp_path, capsys, "--no-verify")
    model.graph.initializer[0].dims.extend([1] * 300)
    assert "304 axes" in _told(model, tmp_path, capsys)


@pytest.mark.parametrize("size", [1 << 31, 1 << 62])
def test_huge_inputs_are_folded_without_a_check(size: int, tmp_path: Path, capsys: Any) -> None:
    model = _layers()
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_value = size
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    assert main(["fold", str(tmp_path / "model.onnx"), str(tmp_path / "folded.onnx")]) == 0
    assert "not run: the input 'x' has" in capsys.readouterr().out


def test_long_names_are_shortened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = _layers()
    model.graph.node[0].input[0] = "n" * 100_000
    assert len(_told(model, tmp_path, capsys)) < 1000


def test_a_pool_whose_last_window_begins_behind_the_tensor_has_no_known_size() -> None:
    """onnx counts three windows, onnxruntime two."""
    g = Build(11)
    y = g.bn(g.conv(g.input("x", (1, 4, 5, 5)), 4))
    y = g.op("Flatten", g.op("AveragePool", y, kernel_shape=[1, 1], strides=[3, 3], ceil_mode=1))
    g.nodes.append(helper.make_node("Gemm", [y, g.const(np.ones((16, 3)), "w")], ["z"]))
    g.types["z"] = helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, (1, 3))
    g.output("z")
    opsets = [helper.make_opsetid("", 11)]
    folded, report = fold_loaded(load(helper.make_model(g.graph(), opset_imports=opsets, ir_version=6)))
    assert "BatchNormalization" not in [node.op_type for node in folded.proto.graph.node]
    assert report.verification is not None
    assert report.verification.status == "passed"


FLAGS = [
    *([], ["--target", "tensorrt"], ["--drop-dead-channels"], ["--precision", "fp16"]),
    *(["--lower-batch-statistics", "--shared", "skip"], ["--no-merge-branches", "--shared", "error"]),
]  # --no-verify with each: the check starts a process


@pytest.mark.parametrize("part", range(4))
def test_damaged_files_end_in_one_line_or_in_a_fold(
    part: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [pattern.build() for pattern in PATTERNS[part::60]]
    models += [everything(), random_model(part, 8), random_sums(part).model()]
    path, statuses = tmp_path / "model.onnx", []
    for seed in range(80):
        content = garble(models[seed % len(models)], 1000 * part + seed)
        path.write_bytes(content)
        flags = FLAGS[seed % len(FLAGS)]
        files = [str(path), str(tmp_path / "folded.onnx")]
        statuses.append(main(["fold", *files, "--force", "--no-verify", *flags]))
        told = capsys.readouterr().err
        assert "internal error" not in told, seed
        assert statuses[-1] != 2 or (told.count("\n") == 1 and len(told) < 3200), seed
        assert path.read_bytes() == content
    assert set(statuses) <= {0, 1, 2}  # 1: a scale of 1e38, say, whose products overflow elsewhere
    assert min(statuses.count(0), statuses.count(2)) > 5


def test_shape_inference_is_given_a_bounded_number_of_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    infer = onnx.shape_inference.infer_shapes

    def counted(model: bytes, **options: Any) -> onnx.ModelProto:
        given.append(len(onnx.load_from_string(model).functions))
        return infer(model, **options)

    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", counted)
    monkeypatch.setattr(infer_module, "FOLLOWED", 200)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("test", 1)]
    g = Build(17, ir=8)
    g.output(g.bn(g.input("x", (1, 4, 8, 8))))
    model = g.model()
    model.opset_import.append(opsets[1])
    for i in range(60):
        called = {"op_type": f"F{i - 1}", "domain": "test"} if i else {"op_type": "Mod"}
        first = helper.make_node(inputs=["x"], outputs=["t"], **called)
        body = [first, helper.make_node("Mod", ["t"], ["y"])]
        model.functions.append(helper.make_function("test", f"F{i}", ["x"], ["y"], body, opsets))
    model.graph.node.append(helper.make_node("F59", ["x"], ["z"], domain="test"))
    model.graph.output.add(name="z")
    read(load(model))
    assert 0 < sum(given) <= 200
    assert given[-1] == 0
