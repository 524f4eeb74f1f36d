"""Engines run by TensorRT: refusals by TensorRT-RTX itself, the rest by a TensorRT that is played."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bnfold.errors import BnfoldError, ModelError, UsageError
from bnfold.onnx_graph.file.loaded import load
from bnfold.tensorrt import engine, run
from bnfold.tensorrt.run import EngineFile
from tests.cli.command import refused
from tests.tensorrt import models

PROFILE = ((1, 6), (4, 6), (8, 6))


# -- TensorRT-RTX


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with a true engine, and some that are none."""
    monkeypatch.chdir(tmp_path)
    plan = bytes(engine.build(load(models.chain()), flavour="tensorrt-rtx").plan)
    (tmp_path / "true.engine").write_bytes(plan)
    (tmp_path / "cut.engine").write_bytes(plan[:1000])
    (tmp_path / "text.engine").write_text("not an engine, but long enough to be taken for one" * 10)
    (tmp_path / "empty.engine").write_bytes(b"")
    (tmp_path / "folder.engine").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("true.engine", "true.engine: TensorRT-RTX "),  # on a machine with a GPU: an engine that runs
        ("cut.engine", "cut.engine: not an engine that TensorRT-RTX "),
        ("text.engine", "text.engine: not an engine that TensorRT-RTX "),
        ("empty.engine", "empty.engine: the file is empty"),
        ("folder.engine", "folder.engine: a folder"),
        ("absent.engine", "absent.engine: there is no such file"),
    ],
)
def test_what_cannot_run_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], file: str, message: str
) -> None:
    import torch

    if file == "true.engine" and torch.cuda.is_available():
        pytest.skip("it can run here: there is a GPU")
    text = refused(capsys, folder, 2, "bench", file, "--provider", "tensorrt-rtx")
    assert text.startswith(f"bnfold: {message}")
    assert "_src" not in text
    assert ("needs an NVIDIA GPU" in text) == (file == "true.engine")


# -- a TensorRT that is played


class Memory:
    """The GPU's. What was uploaded, by address."""

    stream = 77

    def __init__(self) -> None:
        self.sizes: dict[int, int] = {}
        self.uploaded: dict[int, Any] = {}
        self.waits = 0

    def allocate(self, size: int) -> int:
        address = 1000 * (len(self.sizes) + 1)
        self.sizes[address] = size
        return address

    def upload(self, address: int, array: Any) -> None:
        self.uploaded[address] = array

    def wait(self) -> None:
        self.waits += 1


class Context:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.streams: list[int] = []
        self.output = (4, 10)
        self.works = True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        low, _, high = PROFILE
        return all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True))

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes.get(name, self.output)

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        self.streams.append(stream)
        return self.works


class Engine:
    """Takes x, float16 of (batch, 6), and gives y, float32 of (4, 10)."""

    num_io_tensors = 2

    def __init__(self) -> None:
        self.context: Context | None = Context()
        self.kind = "HALF"

    def get_tensor_name(self, i: int) -> str:
        return "xy"[i]

    def get_tensor_mode(self, name: str) -> str:
        return {"x": "in", "y": "out"}[name]

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name={"x": self.kind, "y": "FLOAT"}[name])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return {"x": (-1, 6), "y": (-1, 10)}[name]

    def get_tensor_profile_shape(self, name: str, profile: int) -> Any:
        return PROFILE

    def create_execution_context(self) -> Context | None:
        return self.context


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """`engine`: what is loaded from `path`; `says`: TensorRT's errors while it loads."""
    stage = SimpleNamespace(engine=Engine(), says=[], path=tmp_path / "a.engine", loads=0)
    stage.path.write_bytes(b"a plan")

    class Logger:
        def __init__(self) -> None:
            pass

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
            assert plan == b"a plan"
            stage.loads += 1
            for text in stage.says:
                self.logger.log(1, text)
            return None if stage.says else stage.engine

    module = ModuleType("tensorrt")
    vars(module).update(
        __version__="11.0",
        ILogger=Logger,
        Runtime=Runtime,
        TensorIOMode=SimpleNamespace(INPUT="in"),
        get_plugin_registry=None,
    )
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return stage


def test_an_engine_runs_with_its_tensors_on_the_gpu(played: SimpleNamespace) -> None:
    file = EngineFile(played.path, None)
    assert [(i.name, i.dtype.name, i.dims) for i in file.inputs] == [("x", "float16", (None, 6))]
    memory, feed = Memory(), {"x": np.ones((4, 6), np.float16)}
    racer = file.racer(feed, memory)
    assert (racer.name, racer.provider) == (str(played.path), "TensorRT 11.0")

    context = played.engine.context
    assert context.addresses == {"x": 1000, "y": 2000}
    assert memory.sizes == {1000: 4 * 6 * 2, 2000: 4 * 10 * 4}
    assert memory.uploaded == {1000: feed["x"]}
    assert (context.streams, memory.waits) == ([], 0)
    racer.run()
    racer.run()
    assert (context.streams, memory.waits) == ([77, 77], 2)

    context.works = False
    with pytest.raises(BnfoldError, match="failed while running it"):
        racer.run()


def test_what_an_engine_cannot_take(played: SimpleNamespace) -> None:
    file = EngineFile(played.path, "tensorrt")
    with pytest.raises(UsageError, match=r"'x' cannot be 9x6: it was built for 1x6, 4x6, 8x6"):
        file.racer({"x": np.ones((9, 6), np.float16)}, Memory())
    played.engine.context.output = (-1, 10)
    with pytest.raises(ModelError, match="output 'y' depends on the data"):
        file.racer({"x": np.ones((4, 6), np.float16)}, Memory())
    played.engine.context = None
    with pytest.raises(BnfoldError, match="memory full"):
        file.racer({"x": np.ones((4, 6), np.float16)}, Memory())
    played.engine.kind = "FP8"
    with pytest.raises(ModelError, match="'x' is of type FP8, which cannot be fed"):
        EngineFile(played.path, None)


def test_an_engine_of_another_version(played: SimpleNamespace) -> None:
    text = (
        "IRuntime::deserializeCudaEngine: Error Code 6: API Usage Error (The engine plan file is not"
        " compatible with this version of TensorRT, expecting library version 11.0.0.1 got 10.9.0.34, please "
        "rebuild. In parse at /_src/x.cpp:12)"
    )
    played.says = [text]
    with pytest.raises(
        ModelError, match=r"must be built again \(API Usage Error .* got 10\.9\.0\.34"
    ) as caught:
        EngineFile(played.path, None)
    assert "_src" not in str(caught.value)


def test_an_engine_with_our_plugin_gets_it(played: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    played.says = [
        "IRuntime: Error Code 1: could not find plugin: BnfoldBatchNorm version: 1 namespace: bnfold"
    ]
    monkeypatch.setattr(run, "load_plugin", played.says.clear)
    assert EngineFile(played.path, None).inputs[0].name == "x"
    assert played.loads == 2


def test_memory_is_the_drivers(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    from bnfold.tensorrt import memory

    monkeypatch.setattr(memory, "cuda_device", lambda ordinal: SimpleNamespace(context=5))
    asked: list[tuple[Any, ...]] = []

    def answer(name: str, *given: Any) -> None:
        def function(*arguments: Any) -> tuple[Any, ...]:
            asked.append((name, *arguments))
            return (0, *given)

        monkeypatch.setattr(driver, name, function)

    answer("cuCtxSetCurrent")
    answer("cuStreamCreate", 77)
    answer("cuMemAlloc", 4096)
    answer("cuMemcpyHtoD")
    answer("cuStreamSynchronize")
    answer("cuMemFree")
    made = memory.DeviceMemory()
    array = np.arange(6, dtype=np.float32)
    assert (made.stream, made.allocate(24), made.allocate(0)) == (77, 4096, 4096)
    made.upload(4096, array)
    made.wait()
    assert asked == [
        *(("cuCtxSetCurrent", 5), ("cuStreamCreate", 0), ("cuMemAlloc", 24), ("cuMemAlloc", 1)),
        *(("cuMemcpyHtoD", 4096, array.ctypes.data, 24), ("cuStreamSynchronize", 77)),
    ]
    monkeypatch.setattr(driver, "cuMemAlloc", lambda size: (SimpleNamespace(name="OUT_OF_MEMORY"),))
    with pytest.raises(BnfoldError, match="the GPU's driver refuses: OUT_OF_MEMORY"):
        made.allocate(1)
    del made
    assert asked[-2:] == [("cuMemFree", 4096)] * 2


def test_memory_without_a_gpu_is_told(played: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    from bnfold.kernels.compile import KernelError
    from bnfold.tensorrt import memory

    def no_device(ordinal: int) -> None:
        raise KernelError("no NVIDIA driver can be loaded")

    monkeypatch.setattr(memory, "cuda_device", no_device)
    with pytest.raises(BnfoldError, match="an engine needs an NVIDIA GPU: no NVIDIA driver can be loaded"):
        EngineFile(played.path, None).racer({"x": np.ones((4, 6), np.float16)})
