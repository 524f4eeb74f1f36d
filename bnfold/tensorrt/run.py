"""Engines run by TensorRT itself. Never executed yet: this needs an NVIDIA GPU (docs/engines.md)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bnfold.errors import BnfoldError, ModelError, UsageError
from bnfold.onnx_graph.run.inputs import Input, element_type
from bnfold.tensorrt.engine import FLAVOURS, RTX, reason, toolkit
from bnfold.tensorrt.log import recording
from bnfold.tensorrt.memory import DeviceMemory
from bnfold.tensorrt.plugin import load_plugin
from bnfold.tensorrt.profiles import sizes_text

__all__ = ["EngineFile", "EngineRacer"]

Array = np.ndarray[Any, Any]
# trt.DataType by name, as ONNX numbers the same types
TYPES = {"FLOAT": 1, "UINT8": 2, "INT8": 3, "INT32": 6, "INT64": 7, "BOOL": 9, "HALF": 10, "BF16": 16}


class Memory(Protocol):
    """See `DeviceMemory`."""

    stream: int

    def allocate(self, size: int) -> int: ...
    def upload(self, address: int, array: Array) -> None: ...
    def wait(self) -> None: ...


class EngineFile:
    """An engine, loaded. inputs: what it takes.

    Args:
        path: its file.
        flavour: "tensorrt" or "tensorrt-rtx", whichever built it; None: the one that is installed.

    Raises:
        UsageError: TensorRT is missing. ModelError: it is no engine, or one of another version or GPU.
        BnfoldError: there is no GPU.
    """

    def __init__(self, path: Path, flavour: str | None) -> None:
        trt = toolkit(flavour)
        self.path = path
        self.runner = f"{FLAVOURS[trt.__name__.replace('_', '-')]} {trt.__version__}"
        plan = _read(path)
        with recording(trt) as (logger, log):
            self._runtime = trt.Runtime(logger)
            engine = self._runtime.deserialize_cuda_engine(plan)
            if engine is None and trt.__name__ != RTX and any("Bnfold" in text for text in log.errors):
                load_plugin()  # the engine has it in it
                engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise self._refused(log.errors)
        self._engine = engine
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        self._takes = {n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT}
        self._tensors = {name: self._described(name) for name in names}
        self.inputs = [i for i in self._tensors.values() if i.name in self._takes]

    def _refused(self, errors: list[str]) -> BnfoldError:
        wrong = [text for text in errors if "erialization" in text]  # told first, wherever it stands
        if wrong or not any("cudaError" in text for text in errors):
            why = reason(wrong or errors)
            return ModelError(
                f"{self.path}: not an engine that {self.runner} can load; one of another version, of another "
                f"GPU or of another flavour of TensorRT must be built again ({why})"
            )
        return BnfoldError(f"{self.path}: {self.runner} needs an NVIDIA GPU to run it ({reason(errors)})")

    def _described(self, name: str) -> Input:
        kind = self._engine.get_tensor_dtype(name).name
        if kind not in TYPES:
            raise ModelError(f"{self.path}: its tensor {name!r} is of type {kind}, which cannot be fed")
        dims = tuple(None if dim < 0 else int(dim) for dim in self._engine.get_tensor_shape(name))
        return Input(name, element_type(TYPES[kind]), dims)

    def racer(self, feed: Mapping[str, Array], memory: Memory | None = None) -> EngineRacer:
        """Ready to run on this input. memory: None for the first GPU's.

        Raises:
            UsageError: the engine was built for other shapes. BnfoldError: there is no GPU.
        """
        memory = memory or DeviceMemory()
        context = self._engine.create_execution_context()
        if context is None:
            raise BnfoldError(f"{self.path}: {self.runner} cannot prepare it; is the GPU's memory full?")
        for name, array in feed.items():
            if not context.set_input_shape(name, tuple(array.shape)):
                profile = ", ".join(map(sizes_text, self._engine.get_tensor_profile_shape(name, 0)))
                raise UsageError(
                    f"{self.path}: its input {name!r} cannot be {sizes_text(array.shape)}: it was "
                    f"built for {profile} (smallest, usual, largest)"
                )
        for name, tensor in self._tensors.items():
            shape = [int(dim) for dim in context.get_tensor_shape(name)]
            if min(shape, default=0) < 0:
                raise ModelError(f"{self.path}: the size of its output {name!r} depends on the data")
            address = memory.allocate(math.prod(shape) * tensor.dtype.itemsize)
            if name in feed:
                memory.upload(address, feed[name])
            context.set_tensor_address(name, address)
        return EngineRacer(self, context, memory)


class EngineRacer:
    """An engine with its tensors on the GPU, where they stay."""

    def __init__(self, engine: EngineFile, context: Any, memory: Memory) -> None:
        self.name = str(engine.path)
        self.provider = engine.runner
        self.notes: list[str] = []
        self._engine = engine  # which the context needs
        self._context = context
        self._memory = memory

    def run(self) -> None:
        if not self._context.execute_async_v3(self._memory.stream):
            raise BnfoldError(f"{self.name}: {self.provider} failed while running it")
        self._memory.wait()


def _read(path: Path) -> bytes:
    if path.is_dir():
        raise ModelError(f"{path}: a folder; name the engine's file in it")
    if not path.exists():
        raise ModelError(f"{path}: there is no such file")
    plan = path.read_bytes()
    if not plan:
        raise ModelError(f"{path}: the file is empty")
    return plan
