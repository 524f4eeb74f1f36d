"""Fold first, then quantize: what is left of batch norms then, and what a fold finds in the other order."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

import bnfold
from bnfold.onnx_graph.file.loaded import load
from bnfold.onnx_graph.run.evaluators import evaluate
from examples.make import picture, stubborn, uneven
from tests.api.test_equalize import feed, model


class Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, proto: onnx.ModelProto) -> None:
        self.feeds = iter([feed(proto, seed) for seed in range(8)])

    def get_next(self) -> Any:
        return next(self.feeds, None)


def quantized(proto: onnx.ModelProto, folder: Path, per_channel: bool) -> onnx.ModelProto:
    onnx.save(proto, folder / "float.onnx")
    logging.disable(logging.WARNING)
    try:
        quantize_static(
            folder / "float.onnx",
            folder / "int8.onnx",
            Reader(proto),
            quant_format=QuantFormat.QDQ,
            per_channel=per_channel,
        )
    finally:
        logging.disable(logging.NOTSET)
    return onnx.load(folder / "int8.onnx")


def error(exact: onnx.ModelProto, found: onnx.ModelProto) -> float:
    """Of the outputs, in the 2-norm, on other inputs than those of the calibration."""
    wanted, got = (
        np.stack([evaluate(load(m), feed(exact, seed))[0]["y"] for seed in range(100, 108)])
        for m in (exact, found)
    )
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


NETS = {"picture": picture, "stubborn": stubborn, "uneven": uneven, "conv and batch norm": model}


@pytest.mark.parametrize("per_channel", [False, True], ids=["per tensor", "per channel"])
@pytest.mark.parametrize("name", NETS)
def test_what_was_folded_stays_folded(name: str, per_channel: bool, tmp_path: Path) -> None:
    proto = NETS[name]()
    folded, first = bnfold.fold_onnx(proto)
    small = quantized(folded, tmp_path, per_channel)
    kinds = [node.op_type for node in small.graph.node]
    assert "QuantizeLinear" in kinds
    again, second = bnfold.fold_onnx(small)
    assert again.SerializeToString() == small.SerializeToString()
    assert [entry.name for entry in second.kept] == [entry.name for entry in first.kept]
    for entry in second.kept:
        assert "reads integers" in entry.reason or "rounds to integers" in entry.reason
        assert entry.blocked_by
    assert name in ("uneven", "conv and batch norm") or error(proto, again) < 0.1


@pytest.mark.parametrize("per_channel", [False, True], ids=["per tensor", "per channel"])
def test_quantized_first_the_batch_norm_stays_with_its_reason(per_channel: bool, tmp_path: Path) -> None:
    small = quantized(model(), tmp_path, per_channel)
    same, report = bnfold.fold_onnx(small)
    (entry,) = report.entries
    assert (entry.name, entry.outcome) == ("bn", "kept")
    assert "rounds to integers" in entry.reason
    assert same.SerializeToString() == small.SerializeToString()
    _, balanced = bnfold.equalize_onnx(small, split_relu6=True)
    assert not balanced.regions  # a quantized weight is no range to balance


@pytest.mark.parametrize("name", ["uneven", "conv and batch norm"])
def test_equalized_first_int8_loses_less(name: str, tmp_path: Path) -> None:
    proto = NETS[name]()
    folded, _ = bnfold.fold_onnx(proto)
    balanced, report = bnfold.equalize_onnx(proto)
    assert report.regions
    for per_channel in (False, True):
        before, after = (error(proto, quantized(m, tmp_path, per_channel)) for m in (folded, balanced))
        assert after < 0.5 * before
