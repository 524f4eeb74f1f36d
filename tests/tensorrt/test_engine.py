"""Engines built by TensorRT-RTX without a GPU; and, with it in the place of TensorRT, what is TensorRT's."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bnfold.errors import BnfoldError, ModelError, UsageError
from bnfold.onnx_graph.file import loaded as files
from bnfold.onnx_graph.file.loaded import load
from bnfold.tensorrt import engine, model
from bnfold.tensorrt.log import recording
from tests.tensorrt import models
from tests.tensorrt.models import BATCHES, trt

RTX: dict[str, Any] = {"flavour": "tensorrt-rtx"}


def build(proto: onnx.ModelProto, **options: Any) -> engine.Engine:
    return engine.build(load(proto), **{**RTX, "compute_capabilities": ["8.0"], **options})


# -- what is built


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_types_are_the_models(dtype: str) -> None:
    built = build(models.chain(dtype=dtype, opset=22))
    plan = bytes(built.plan)
    assert len(plan) > 10_000
    assert plan[:4] == b"vtrt"
    assert built.builder == f"TensorRT-RTX {trt.__version__}"
    assert built.compute_capabilities == ("8.0",)
    assert built.notes == []
    with recording(trt) as (logger, log):
        network = trt.Builder(logger).create_network(0)
        with model.parsed(
            trt, model.prepare(load(models.chain(dtype=dtype, opset=22)), plugins=False), network, logger, log
        ):
            names = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16"}
            assert network.get_output(0).dtype.name == names[dtype]


def test_open_sizes_get_a_profile() -> None:
    built = build(models.chain("N"), shapes=BATCHES)
    assert built.profiles == BATCHES
    assert built.to_dict()["shapes"] == {"x": "1x6x9x9,4x6x9x9,8x6x9x9"}
    assert b"vtrt" in bytes(built.plan)[:8]


def test_several_targets_and_the_builders_own_choice() -> None:
    for targets in ([], ["8.0", "12.0"]):
        built = build(models.chain(), compute_capabilities=targets)
        assert built.to_dict()["compute_capabilities"] == targets
        assert built.to_dict()["bytes"] == len(bytes(built.plan)) > 10_000


def test_the_model_stays_as_it_is() -> None:
    proto = models.ours()
    loaded = load(proto)
    engine.build(loaded, **RTX)
    assert not loaded.edited
    assert loaded.to_proto() == proto


def test_weights_in_a_file_beside_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proto = models.residual()
    path = tmp_path / "model.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    plain = build(models.residual())
    for largest in (files.LARGEST, 1000):  # as one message, and by way of files
        loaded = load(path)
        with monkeypatch.context() as patch:
            patch.setattr(files, "LARGEST", largest)
            built = engine.build(loaded, **RTX, compute_capabilities=["8.0"])
        assert built.placement == plain.placement
        assert abs(len(bytes(built.plan)) - len(bytes(plain.plan))) < 1000
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelError, match=r"data file 'weights.bin' is missing"):
        engine.build(load(path), **RTX)


def test_a_data_file_outside_the_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    path = folder / "model.onnx"
    onnx.save(models.chain(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (folder / "weights.bin").rename(tmp_path / "weights.bin")
    path.write_bytes(path.read_bytes().replace(b"weights.bin", b"../ghts.bin"))
    with pytest.raises(ModelError, match=r"'\.\./ghts\.bin' is refused"):
        engine.build(load(path), **RTX)


# -- progress and interruption


def test_progress_rises_to_the_end() -> None:
    seen: list[tuple[int, int, str]] = []
    build(models.chain(), progress=lambda done, total, what="": seen.append((done, total, what)))
    percents = [done for done, _, _ in seen]
    assert percents == sorted(percents)
    assert percents[0] < 10
    assert percents[-1] > 80
    assert {total for _, total, _ in seen} == {100}
    assert "Optimizing graph" in {what for _, _, what in seen}


def test_ctrl_c_stops_the_build_and_nothing_else() -> None:
    before = signal.getsignal(signal.SIGINT)
    count = 0

    def interrupt(done: int, total: int, what: str = "") -> None:
        nonlocal count
        count += 1
        if count == 5:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        build(models.chain(), progress=interrupt)
    assert 5 <= count < 20  # a whole build takes more than 60 steps
    assert signal.getsignal(signal.SIGINT) is before
    assert build(models.chain()).placement is not None


# -- what is refused


SHAPES = [
    ({}, r"sizes are open in the input x: float32 \(N, 6, 9, 9\).*--shapes 'x:1x6x9x9,8x6x9x9,32x6x9x9'"),
    ({"z": ((1,),) * 3}, r"no input 'z'. Note: its inputs are x: float32 \(N, 6, 9, 9\)"),
    ({"x": ((1, 6, 9),) * 3}, r"smallest shape is given as 1x6x9: 3 axes instead of 4"),
    ({"x": ((1, 6, 9, 9), (4, 6, 9, 9), (8, 7, 9, 9))}, r"largest shape .* axis 1 is 7 instead of 6"),
    ({"x": ((4, 6, 9, 9), (1, 6, 9, 9), (8, 6, 9, 9))}, r"axis 0 .* smallest 4, usual 1, largest 8"),
    ({"x": ((1 << 31, 6, 9, 9),) * 3}, r"sizes end at 2147483647"),
]


@pytest.mark.parametrize(("shapes", "message"), SHAPES)
def test_shapes_that_do_not_fit(shapes: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(models.chain("N"), shapes=shapes)


def two_inputs(**dims: Any) -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims.get(name)) for name in "ab"]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph([helper.make_node("Add", ["a", "b"], ["y"], name="add")], "g", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_one_name_is_one_size() -> None:
    proto = two_inputs(a=["N", 4], b=["N", 4])
    a, b = ((1, 4), (2, 4), (3, 4)), ((1, 4), (2, 4), (4, 4))
    assert build(proto, shapes={"a": a, "b": a}).profiles == {"a": a, "b": a}
    with pytest.raises(UsageError, match="'N' is 1,2,4 in the input 'b' and 1,2,3 in the input 'a'"):
        build(proto, shapes={"a": a, "b": b})


def test_inputs_that_tensorrt_would_misread() -> None:
    with pytest.raises(ModelError, match="does not say how many axes its input 'b' has"):
        build(two_inputs(a=[1, 4]))
    with pytest.raises(ModelError, match=r"'a' is float32 \(1099511627776, 4\)"):
        build(two_inputs(a=[1 << 40, 4], b=[1, 4]))


def test_an_input_that_decides_about_shapes() -> None:
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 6]),
        helper.make_tensor_value_info("sizes", TensorProto.INT64, [2]),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    node = helper.make_node("Reshape", ["x", "sizes"], ["y"], name="reshape")
    opset = [helper.make_opsetid("", 17)]
    proto = helper.make_model(
        helper.make_graph([node], "g", inputs, outputs), opset_imports=opset, ir_version=8
    )
    with pytest.raises(ModelError, match="the input 'sizes' decides about shapes"):
        build(proto)


def test_flags_of_the_other_flavour() -> None:
    with pytest.raises(
        UsageError, match=r"compute capability '9.0'. Note: valid choices are 7.5, 8.0, .*12.1$"
    ):
        build(models.chain(), compute_capabilities=["9.0"])
    with pytest.raises(UsageError, match="names one twice"):
        build(models.chain(), compute_capabilities=["8.0", "8.0"])
    with pytest.raises(UsageError, match="--timing-cache has nothing to do with TensorRT-RTX"):
        build(models.chain(), timing_cache=b"")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=r"TensorRT-RTX cannot be used .*pip install tensorrt-rtx"):
        build(models.chain())
    with pytest.raises(UsageError, match="pip install tensorrt"):
        build(models.chain(), flavour=None)


# -- what the parser says


def test_training_mode_is_told_with_its_cure() -> None:
    with pytest.raises(model.ParseError) as caught:
        build(models.training())
    text = str(caught.value)
    assert text.startswith(
        "TensorRT cannot parse it: node 'bn' (BatchNormalization): This version of TensorRT"
    )
    assert "`bnfold fold --target tensorrt`" in text
    assert text.endswith("(and 1 more; -v lists them)")
    assert [detail.split(":")[0] for detail in caught.value.details] == ["node 'bn' (BatchNormalization)"] * 2
    assert "1 outputs for BatchNormalization" in caught.value.details[1]


def test_an_axis_that_is_computed_is_told_with_its_cure() -> None:
    """As torch's exporter writes the axes of a global mean: a Reshape of a Constant."""
    proto = two_inputs(a=[2, 4], b=[2, 4])
    axes = onnx.numpy_helper.from_array(np.array([1], np.int64), "axes")
    shape = onnx.numpy_helper.from_array(np.array([-1], np.int64), "shape")
    proto.graph.initializer.extend([axes, shape])
    proto.graph.node.add().CopyFrom(helper.make_node("Reshape", ["axes", "shape"], ["flat"], name="reshape"))
    proto.graph.node.add().CopyFrom(helper.make_node("ReduceMean", ["y", "flat"], ["z"], name="mean"))
    proto.graph.output[0].name = "z"
    proto.opset_import[0].version = 18
    with pytest.raises(
        model.ParseError, match=r"node 'mean' \(ReduceMean\): .*; `bnfold fold --target tensorrt`"
    ):
        build(proto)


def test_an_unknown_operator_and_an_unknown_type() -> None:
    proto = two_inputs(a=[1, 4], b=[1, 4])
    proto.graph.node[0].op_type, proto.graph.node[0].domain = "Blur", "mine"
    proto.opset_import.append(helper.make_opsetid("mine", 1))
    with pytest.raises(model.ParseError, match=r"node 'add' \(Blur\): Plugin not found.*no such operator"):
        build(proto)
    proto = two_inputs(a=[1, 4], b=[1, 4])  # of these the parser says nothing but "false"
    proto.graph.node[0].op_type, proto.graph.node[0].output[0] = "SequenceConstruct", "pair"
    joined = helper.make_node("ConcatFromSequence", ["pair"], ["y"], name="join", axis=0)
    proto.graph.node.append(joined)
    with pytest.raises(model.ParseError, match=r"\(SequenceConstruct\): TensorRT has no such operator \("):
        build(proto)
    proto = two_inputs(a=[1, 4], b=[1, 4])
    for value in proto.graph.input:
        value.type.tensor_type.elem_type = TensorProto.COMPLEX64
    with pytest.raises(ModelError, match=r"'a' is complex64 \(1, 4\), a type that TensorRT does not take"):
        build(proto)
    proto = two_inputs(a=[1, 4], b=[1, 4])
    proto.graph.node[0].output[0] = "sum"
    cast = helper.make_node("Cast", ["sum"], ["y"], name="cast", to=TensorProto.UINT16)
    proto.graph.node.append(cast)
    with pytest.raises(model.ParseError, match=r"node 'cast' \(Cast\)"):
        build(proto)


def test_damaged_models_never_reach_the_parser() -> None:
    """It ends the process at some, and writes to stderr by itself at others."""
    proto = two_inputs(a=[1, 4], b=[1, 4])
    proto.graph.node[0].input[1] = "nowhere"
    with pytest.raises(ModelError, match=r"node 'add' \(Add\) reads 'nowhere'"):
        build(proto)
    proto = two_inputs(a=[1, 4], b=[1, 4])
    proto.graph.node[0].op_type, proto.graph.node[0].domain = "F", "f"
    opset = [helper.make_opsetid("f", 1)]
    call = helper.make_node("F", ["a", "b"], ["y"], domain="f")
    proto.functions.append(helper.make_function("f", "F", ["a", "b"], ["y"], [call], opset))
    with pytest.raises(ModelError, match="in a circle: F -> F"):
        build(proto)


def test_ours_are_functions_where_plugins_are_not_supported() -> None:
    prepared = model.prepare(load(models.ours()), plugins=False)
    calls = [node for node in prepared.loaded.proto.graph.node if node.domain == "bnfold"]
    assert [list(node.attribute) for node in calls] == [[], []]
    kept = model.prepare(load(models.ours()), plugins=True)
    calls = [node for node in kept.loaded.proto.graph.node if node.domain == "bnfold"]
    assert [[a.name for a in node.attribute] for node in calls] == [
        ["plugin_namespace", "plugin_version"]
    ] * 2
    [note] = build(models.ours()).notes
    assert "TensorRT-RTX takes no plugins" in note
    assert build(models.ours(plugin=False)).placement == build(models.ours()).placement


# -- TensorRT itself, played by TensorRT-RTX: what bnfold asks of it, not what it would do


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module `tensorrt` with all that is in tensorrt_rtx."""
    module = ModuleType("tensorrt")
    vars(module).update({name: value for name, value in vars(trt).items() if not name.startswith("__")})
    module.__version__ = "11.0"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return module


def test_tensorrt_comes_first(full: ModuleType) -> None:
    built = engine.build(load(models.chain()))
    assert built.builder == "TensorRT 11.0"
    assert built.compute_capabilities == ()
    with pytest.raises(UsageError, match=r"--compute-capability has nothing to do with TensorRT,"):
        build(models.chain(), flavour="tensorrt")
    assert build(models.chain()).builder.startswith("TensorRT-RTX ")


@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX")
def test_a_timing_cache_is_read_and_written(full: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    built = engine.build(load(models.chain()), timing_cache=b"")
    assert len(bytes(built.timing_cache)) > 0
    assert engine.build(load(models.chain()), timing_cache=bytes(built.timing_cache)).timing_cache is not None
    assert engine.build(load(models.chain())).timing_cache is None
    monkeypatch.setattr(trt.IBuilderConfig, "set_timing_cache", lambda *_, **__: False)
    with pytest.raises(UsageError, match="--timing-cache: TensorRT does not take it"):
        engine.build(load(models.chain()), timing_cache=b"of another version")


def test_without_a_gpu_tensorrt_does_not_start(full: ModuleType) -> None:
    def no_builder(logger: Any) -> Any:
        logger.log(1, "CUDA initialization failure with error: 35. In make at /_src/x.cpp:1")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    full.Builder = no_builder  # type: ignore[attr-defined]
    with pytest.raises(BnfoldError, match=r"11.0 cannot start: CUDA .* error: 35.*tensorrt-rtx") as caught:
        engine.build(load(models.chain()))
    assert "_src" not in str(caught.value)


def test_the_plugin_is_loaded_for_tensorrt(full: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def load_plugin() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise UsageError("there is no compiler")

    monkeypatch.setattr(engine, "load_plugin", load_plugin)
    proto = models.ours(plugin=False)  # TensorRT-RTX would end the process at a plugin
    [note] = engine.build(load(proto)).notes
    assert "are plugins" in note
    [note] = engine.build(load(proto)).notes
    assert "the plugin was not loaded (there is no compiler)" in note
    engine.build(load(models.chain()))
    assert len(calls) == 2


def test_a_log_without_layers_is_told(full: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "layers_in", lambda text, names: [])
    built = engine.build(load(models.chain()))
    assert built.placement is None
    assert "did not list the engine's layers" in built.notes[0]
    assert built.to_dict()["batch_norms"] == []
