"""onnxruntime's static quantizer, QDQ, a scale for each output channel: the file that it writes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn

from bnfold.integrations import onnxruntime
from tools._common import session
from tools._data.models import fold_constants
from tools._peers.left import inspect, left
from tools._stacks.measure import INT8, Made, exported, measure, shared
from tools._stacks.timing import Run

CALIBRATION = 4  # images


class Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, name: str, x: Tensor) -> None:
        torch.manual_seed(1)
        self.feeds: Iterator[Any] = iter({name: torch.randn_like(x).numpy()} for _ in range(CALIBRATION))

    def get_next(self) -> Any:
        return next(self.feeds, None)


def prepared(module: nn.Module, x: Tensor) -> Path:
    """The network's file, what is constant in it computed."""
    raw = exported(module, x)
    path = shared("prepared.onnx")
    if not path.exists():
        fold_constants(raw, path)
    return path


def make(module: nn.Module, x: Tensor, fold: dict[str, Any] | None) -> Made:
    """bnfold's step in front of the quantizer, or onnxruntime's own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        raw, ready, made = prepared(module, x), folder / "ready.onnx", folder / "made.onnx"
        if fold is None:
            quant_pre_process(raw, ready, skip_symbolic_shape=True)
        else:
            how = {"quantize_for": None} | fold
            onnxruntime.quant_pre_process(raw, ready, skip_symbolic_shape=True, **how)
        own = inspect(raw)[1]
        entry = session(raw).get_inputs()[0].name
        quantize_static(ready, made, Reader(entry, x), quant_format=QuantFormat.QDQ, per_channel=True)
        written = made.read_bytes()
        return Made(left(made, own), started(written), lambda: started(written))


def started(model: bytes) -> Run:
    """A session of its own."""
    runs = session(model)
    entry = runs.get_inputs()[0].name
    return lambda x: runs.run(None, {entry: x.numpy()})[0]


if __name__ == "__main__":
    measure(make, INT8, prepared)
