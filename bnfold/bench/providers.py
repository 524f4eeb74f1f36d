"""Models run by onnxruntime, on the provider that was asked for and on no other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx

from bnfold.errors import BnfoldError, ModelError, UsageError, first_line
from bnfold.onnx_graph.run import evaluators
from bnfold.report.table import shortened

__all__ = ["PROVIDERS", "OnnxRacer", "Provider", "runtime"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Provider:
    """One of onnxruntime's. name: its own; memory: where inputs and outputs lie while the time is taken."""

    name: str
    memory: str


PROVIDERS = {
    "cpu": Provider("CPUExecutionProvider", "cpu"),
    "cuda": Provider("CUDAExecutionProvider", "cuda"),
    "tensorrt": Provider("TensorrtExecutionProvider", "cuda"),
    "tensorrt-rtx": Provider("NvTensorRTRTXExecutionProvider", "cpu"),
}


def runtime(provider: str) -> ModuleType:
    """onnxruntime, if it has this provider.

    Raises:
        UsageError: it is not installed, or was built without the provider.
    """
    try:
        onnxruntime: ModuleType = evaluators.runtime()
    except evaluators.CannotRun as reason:
        raise UsageError(str(reason)) from None
    there = onnxruntime.get_available_providers()
    if PROVIDERS[provider].name not in there:
        choices = [name for name, each in PROVIDERS.items() if each.name in there]
        raise UsageError(
            f"onnxruntime {onnxruntime.__version__} has no provider {provider} ({PROVIDERS[provider].name}) "
            f"here. Note: valid choices are {', '.join(choices)}"
        )
    module: ModuleType = onnxruntime
    return module


class OnnxRacer:
    """A session as it would be deployed: all graph optimizations, onnxruntime's own choices.

    Inputs are bound once, and stay in the provider's memory; so do the outputs.

    Raises:
        UsageError: the provider cannot be had; ModelError: onnxruntime refuses the model.
    """

    def __init__(self, path: Path, provider: str, feed: Mapping[str, Array], threads: int | None) -> None:
        ort: Any = runtime(provider)
        wanted = PROVIDERS[provider]
        options = ort.SessionOptions()
        options.log_severity_level = 4  # fatal only: what else is wrong comes as an exception
        # Else its threads would go on waiting busily, on the processors that the next model needs.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            session = ort.InferenceSession(str(path), options, providers=[wanted.name], enable_fallback=0)
        except Exception as error:
            raise ModelError(f"{path}: onnxruntime refuses it: {_line(error)}") from None
        ran = session.get_providers()
        if ran[:1] != [wanted.name]:  # it falls back to the CPU without an error
            raise UsageError(
                f"onnxruntime cannot start {wanted.name}, and would run {path} by {', '.join(ran)}; is its "
                "GPU, driver and library there?"
            )
        self.name = str(path)
        self.provider = f"onnxruntime, {provider}"
        self.notes = _elsewhere(session, path, wanted.name)
        self._session = session
        try:
            self._binding = _bound(ort, session, feed, wanted.memory)
            self.run()
        except Exception as error:
            raise BnfoldError(f"{path}: onnxruntime cannot run it: {_line(error)}") from None

    def run(self) -> None:
        self._session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()


def _bound(ort: Any, session: Any, feed: Mapping[str, Array], memory: str) -> Any:
    binding = session.io_binding()
    for name, array in feed.items():
        array = np.ascontiguousarray(array)
        if array.dtype.kind == "V":  # bfloat16 and its like, which onnxruntime knows by a number
            code = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
            bits = array.view(f"u{array.dtype.itemsize}")
            value = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, code)
        else:
            value = ort.OrtValue.ortvalue_from_numpy(array, memory, 0)
        binding.bind_ortvalue_input(name, value)
    for output in session.get_outputs():
        binding.bind_output(output.name, memory)
    return binding


def _elsewhere(session: Any, path: Path, wanted: str) -> list[str]:
    """How many nodes another provider than the wanted one runs, where onnxruntime can tell."""
    try:
        parts = session.get_provider_graph_assignment_info()
        counts = Counter(part.ep_name for part in parts for _ in part.get_nodes())
    except Exception:  # older releases have no such question, and no answer is no reason to stop
        return []
    others = [(name, count) for name, count in counts.items() if name != wanted]
    return [f"{path}: {count} of {counts.total()} nodes run by {name}" for name, count in others]


def _line(error: Exception) -> str:
    return shortened(first_line(error), 300)
