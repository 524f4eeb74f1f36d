"""Running a model as it stands: onnxruntime with its optimizer off, else onnx's reference evaluator."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx

from bnfold.errors import BnfoldError
from bnfold.onnx_graph.file.calls import explodes
from bnfold.onnx_graph.file.loaded import Loaded
from bnfold.onnx_graph.file.save import save
from bnfold.origin import extra
from bnfold.report.table import first

Array = np.ndarray[Any, Any]
Outputs = dict[str, Any]  # an array each; a list for a sequence, a dict for a map, None for an empty optional

MISSING = "onnxruntime is not installed"
_BUILDS = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-openvino",
    "onnxruntime-qnn",
)
# Weights, in number. The reference evaluator holds them several times over.
LARGEST_FOR_REFERENCE = 1 << 28


class CannotRun(BnfoldError):
    """A model cannot be run, on what it is fed or at all; the message is the reason, in one line."""


class NoMemory(CannotRun):
    """It could be run, on a larger machine or on a smaller input."""


class Evaluator(Protocol):
    """A model made ready to run. name: of what runs it, with the version."""

    name: str

    def run(self, feed: Mapping[str, Array]) -> Outputs:
        """The graph outputs by name. Raises CannotRun."""

    def seconds(self, feed: Mapping[str, Array]) -> float:
        """A rough estimate of what `run` will take, where that can be long; else 0."""


def runtime() -> Any:
    """The module onnxruntime.

    Raises:
        CannotRun: it is not installed, or only what is left of it where two builds overwrote each other.
    """
    try:
        import onnxruntime

        onnxruntime.InferenceSession  # noqa: B018 - a folder without the package can be imported too
    except (ImportError, AttributeError):
        both = doubled()
        raise CannotRun(
            f"{MISSING} whole: {both}" if both else f"{MISSING} ({extra('onnxruntime')})"
        ) from None
    return onnxruntime


def doubled() -> str:
    """What to do where two builds of onnxruntime are installed, with their files in one place; else ""."""
    builds = [name for name in _BUILDS if next(iter(metadata.distributions(name=name)), None) is not None]
    if len(builds) < 2:
        return ""
    both = " ".join(builds)
    return (
        f"{first(builds, 3)} are installed, and overwrite each other's files: "
        f"pip uninstall -y {both}, then pip install the one that you need"
    )


class OnnxRuntime:
    """onnxruntime on the CPU, nothing logged; its graph optimizations off, unless they are asked for.

    Raises:
        CannotRun: onnxruntime is not installed, or refuses the model.
    """

    label = "onnxruntime"

    def __init__(self, loaded: Loaded, optimized: bool = False) -> None:
        onnxruntime = runtime()
        self.name = f"onnxruntime {onnxruntime.__version__}"
        self._ort: Any = onnxruntime
        levels = onnxruntime.GraphOptimizationLevel
        self._level = levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
        _refuse_explosion(loaded)
        try:
            self._session = self._open(loaded)
        except BnfoldError:
            raise
        except Exception as error:
            newest = re.search(r"max supported IR version: (\d+)", str(error))
            if newest is None:
                raise _cannot(error) from None
            # It says which fields a file may use; a model that only declares a newer one runs as it is.
            older = loaded.copy()
            older.proto.ir_version = int(newest.group(1))
            try:
                self._session = self._open(older)
            except Exception as again:
                raise _cannot(again) from None

    def _open(self, loaded: Loaded) -> Any:
        options = self._ort.SessionOptions()
        options.graph_optimization_level = self._level
        options.log_severity_level = 4  # fatal only: what else is wrong comes as an exception
        # Threads that wait in a loop take the time of others, and gain nothing in a few runs.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")

        def session(source: str | bytes) -> Any:
            return self._ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])

        if loaded.path is not None and not loaded.edited:
            return session(str(loaded.path))
        message = loaded.message()
        if message is not None:
            return session(message)
        with tempfile.TemporaryDirectory(prefix="bnfold-") as folder:
            path = Path(folder) / "model.onnx"
            save(loaded, path, external=True)
            return session(str(path))

    def run(self, feed: Mapping[str, Array]) -> Outputs:
        try:
            if any(array.dtype.kind == "V" for array in feed.values()):  # ml_dtypes', unknown to onnxruntime
                return self._run_with_values(feed)
            names = [output.name for output in self._session.get_outputs()]
            return dict(zip(names, self._session.run(None, dict(feed)), strict=True))
        except CannotRun:
            raise
        except Exception as error:
            raise _cannot(error) from None

    def seconds(self, feed: Mapping[str, Array]) -> float:
        return 0.0

    def _run_with_values(self, feed: Mapping[str, Array]) -> Outputs:
        """bfloat16 and its like go in and out as their bits."""
        make = self._ort.OrtValue
        values = {}
        for name, array in feed.items():
            if array.dtype.kind == "V":
                code = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
                bits = np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")
                values[name] = make.ortvalue_from_numpy_with_onnx_type(bits, code)
            else:
                values[name] = make.ortvalue_from_numpy(np.ascontiguousarray(array))
        outputs = self._session.get_outputs()
        results = self._session.run_with_ort_values(None, values)
        return {output.name: value.numpy() for output, value in zip(outputs, results, strict=True)}


class Reference:
    """onnx's reference evaluator with our own convolutions, poolings and batch norm (see reference.py).

    Raises:
        CannotRun: it does not know an operator, or the model is too large for it.
    """

    label = "onnx reference evaluator"

    def __init__(self, loaded: Loaded) -> None:
        from bnfold.onnx_graph.run import reference

        self.name = f"{self.label} {onnx.__version__}"
        self._loaded = loaded
        _refuse_large(loaded)
        try:
            self._evaluator = reference.evaluator(loaded.to_proto())
        except BnfoldError:
            raise
        except Exception as error:
            raise _cannot(error) from None

    def seconds(self, feed: Mapping[str, Array]) -> float:
        return reference_seconds(self._loaded, feed)

    def run(self, feed: Mapping[str, Array]) -> Outputs:
        try:
            with np.errstate(all="ignore"):  # infinities and NaNs are compared, not warned about
                results = self._evaluator.run(None, dict(feed))
        except Exception as error:
            raise _cannot(error) from None
        return dict(zip(self._evaluator.output_names, results, strict=True))


EVALUATORS: tuple[type[OnnxRuntime | Reference], ...] = (OnnxRuntime, Reference)


def reference_seconds(loaded: Loaded, feed: Mapping[str, Array]) -> float:
    """A rough estimate of what the reference evaluator takes for `loaded` on `feed`.

    Raises:
        CannotRun: the model is too large for it altogether.
    """
    from bnfold.onnx_graph.run import reference

    _refuse_large(loaded)
    return reference.seconds(loaded.proto, {name: array.shape for name, array in feed.items()})


def opened(loaded: Loaded) -> Evaluator:
    """The first evaluator that takes a model, for many runs.

    Raises:
        CannotRun: none does; the message has the reasons of all.
    """
    reasons = []
    for make in EVALUATORS:
        try:
            return make(loaded)
        except CannotRun as error:
            reasons.append(f"{make.label}: {error}")
    raise CannotRun("; ".join(reasons))


def evaluate(loaded: Loaded, feed: Mapping[str, Array]) -> tuple[Outputs, str]:
    """Run `loaded` on `feed`: the outputs by name, and the evaluator that ran, such as "onnxruntime 1.32.0".

    Raises:
        CannotRun: neither evaluator can; the message has both reasons.
    """
    reasons = []
    for make in EVALUATORS:
        try:
            evaluator = make(loaded)
            return evaluator.run(feed), evaluator.name
        except CannotRun as error:
            reasons.append(f"{make.label}: {error}")
    raise CannotRun("; ".join(reasons))


def _refuse_explosion(loaded: Loaded) -> None:
    if explodes(loaded.proto):
        raise CannotRun("its functions call each other too often to be inlined")


def _refuse_large(loaded: Loaded) -> None:
    _refuse_explosion(loaded)
    if sum(math.prod(t.dims) for t in loaded.proto.graph.initializer) > LARGEST_FOR_REFERENCE:
        raise CannotRun("the model has too many weights for it")


def _cannot(error: Exception) -> CannotRun:
    """What an evaluator says, as one of our errors."""
    said = _one_line(error)
    memory = isinstance(error, MemoryError) or re.search("Failed to allocate memory|bad.alloc", said)
    return NoMemory(f"not enough memory: {said}") if memory else CannotRun(said)


def _one_line(error: Exception) -> str:
    """onnxruntime's and onnx's exceptions can fill a screen; the reason is at the start of it."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", " ".join(str(error).split()))
    text = re.sub(r"/\S*onnxruntime_src\S* ", "", text)
    return (text if len(text) <= 300 else text[:299] + "…") or type(error).__name__
