"""A model quantized by onnxruntime: QDQ, ranges from samples, its usual settings for integer weights."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bnfold.errors import BnfoldError, UsageError, shortened
from bnfold.onnx_graph.file.loaded import Loaded, load
from bnfold.onnx_graph.file.save import save
from bnfold.onnx_graph.run.evaluators import MISSING
from bnfold.onnx_graph.run.samples import Samples

__all__ = ["prepare", "quantize"]


def prepare(loaded: Loaded) -> Loaded:
    """A copy as onnxruntime's quantizer wants it: constants computed, shapes inferred.

    Raises:
        UsageError: onnxruntime is not installed, or cannot prepare it.
    """

    def run(source: Path, goal: Path) -> None:
        from onnxruntime.quantization.shape_inference import quant_pre_process

        quant_pre_process(str(source), str(goal), skip_symbolic_shape=True)

    return _carried_out(loaded, run)


def quantize(loaded: Loaded, samples: Samples, units: Sequence[int], per_channel: bool) -> Loaded:
    """A copy in integers: int8 weights, uint8 tensors, ranges by their lowest and highest values.

    loaded: prepared. units: of the samples, for the ranges. per_channel: each output channel of a weight has
    a scale.

    Raises:
        UsageError: onnxruntime is not installed, or cannot quantize it.
    """

    def run(source: Path, goal: Path) -> None:
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

        quantize_static(
            str(source),
            str(goal),
            _Reader(samples, units),
            quant_format=QuantFormat.QDQ,
            per_channel=per_channel,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )

    return _carried_out(loaded, run)


class _Reader:
    """What onnxruntime calls a CalibrationDataReader, which it looks for by these methods."""

    def __init__(self, samples: Samples, units: Sequence[int]) -> None:
        self._feeds = samples.feeds(units)

    def get_next(self) -> Any:
        return next((feed for _, feed in self._feeds), None)

    def __iter__(self) -> Iterator[Any]:
        return (feed for _, feed in self._feeds)


def _carried_out(loaded: Loaded, run: Any) -> Loaded:
    """What `run` writes, given a file with the model and the file to write."""
    with tempfile.TemporaryDirectory(prefix="bnfold-") as folder, _silent():
        source, goal = Path(folder) / "source.onnx", Path(folder) / "goal.onnx"
        save(loaded, source)
        try:
            run(source, goal)
        except ImportError:
            raise UsageError(MISSING) from None
        except BnfoldError:
            raise
        except Exception as error:
            what = shortened(" ".join(f"{type(error).__name__}: {error}".split()))
            raise UsageError(f"onnxruntime cannot quantize the model: {what}") from None
        return load(load(goal).to_proto())


@contextmanager
def _silent() -> Iterator[None]:
    """The quantizer's warnings are advice on how to call it."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
