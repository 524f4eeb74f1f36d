"""The guard of `quantize_for` with calibration data: what it measures, and which plan it takes."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import bnfold
from bnfold.api.guard import SETS, divided
from bnfold.cli.app import main
from bnfold.errors import UsageError
from bnfold.report.guard import Guard, choose
from tests.onnx_graph.build import Array, Build

CHANNELS, QUIET = 24, 4  # channels of the input; of those, the ones that hold next to nothing


def block(large: float) -> onnx.ModelProto:
    """3 x 3 and 1 x 1, where the 1 x 1 has a weight of that size in each row, on a quiet channel.

    The rule takes all channels to be alike: to it, the large weights make much of the sum.
    """
    g = Build(seed=3)
    x = g.input("x", ("N", CHANNELS, 6, 6))
    point = np.zeros((CHANNELS, CHANNELS, 1, 1))
    point[:, :, 0, 0] = g.normal((CHANNELS, CHANNELS)) * 0.02
    point[np.arange(CHANNELS), np.arange(CHANNELS) % QUIET] = large
    wide = g.conv(x, CHANNELS, 3, pads=1, name="wide")
    g.output(g.op("Relu", g.op("Add", wide, g.conv(x, CHANNELS, 1, name="point", w=g.const(point)))))
    return g.model()


def samples(count: int = 50, quiet: float = 1.0) -> dict[str, Array]:
    x = np.random.default_rng(1).standard_normal((count, CHANNELS, 6, 6)).astype(np.float32)
    x[:, :QUIET] *= quiet
    return {"x": x}


def convolutions(model: onnx.ModelProto) -> int:
    return Counter(node.op_type for node in model.graph.node)["Conv"]


def test_merged_where_that_is_no_worse() -> None:
    model = block(0.3)
    without, report = bnfold.fold_onnx(model, quantize_for="int8")
    assert report.guard is None
    folded, report = bnfold.fold_onnx(model, quantize_for="int8", calibration=samples())
    assert folded.SerializeToString() == without.SerializeToString()
    found = report.guard
    assert found is not None
    assert found.taken == "merged"
    assert convolutions(folded) == 1
    assert len(found.merged_db) == len(found.apart_db) == SETS
    assert len(set(found.apart_db)) == SETS
    assert (found.samples, found.compared) == (10, 10)
    assert "guard: merged" in str(report)
    assert json.loads(report.to_json())["guard"]["taken"] == "merged"
    assert logging.root.manager.disable == logging.NOTSET


def test_apart_where_the_rule_is_wrong_about_the_data() -> None:
    model = block(0.5)
    merged, report = bnfold.fold_onnx(model, quantize_for="int8")
    assert convolutions(merged) == 1
    folded, report = bnfold.fold_onnx(model, quantize_for="int8", calibration=samples(quiet=1e-3))
    assert convolutions(folded) == 2
    found = report.guard
    assert found is not None
    assert found.taken == "apart"
    assert np.mean(found.merged_db) < np.mean(found.apart_db) - 0.5
    [apart] = report.apart
    assert apart.reason.startswith("stay apart for int8, which was measured")


def test_nothing_to_compare() -> None:
    """Where the rule merges nothing, both plans are one, and the data is not looked at."""
    _, report = bnfold.fold_onnx(block(3.0), quantize_for="int8", calibration=samples(2))
    assert report.guard == Guard("merged")
    assert "nothing to compare" in str(report)


def test_sets_have_nothing_in_common_if_there_is_enough() -> None:
    sets, held = divided(60)
    assert len(sets) == SETS
    units = [unit for part in (*sets, held) for unit in part]
    assert sorted(units) == list(range(60))
    sets, held = divided(12)
    assert len({tuple(part) for part in sets}) == SETS
    assert all(len(part) == 8 and not set(part) & set(held) for part in sets)
    with pytest.raises(UsageError, match="enough for 4 runs, and the guard needs 5"):
        divided(4)


def test_half_a_decibel() -> None:
    assert choose([30.0, 31.0], [31.0, 31.0]) == "merged"
    assert choose([30.0, 30.9], [31.0, 31.0]) == "apart"


def test_what_is_refused() -> None:
    for options, said in (
        ({}, "nothing to do unless quantize_for is int8"),
        ({"quantize_for": "int4"}, "nothing to do unless quantize_for is int8"),
        ({"quantize_for": "int8", "target": "tensorrt"}, "take no target and no precision"),
        ({"quantize_for": "int8", "precision": "fp16"}, "take no target and no precision"),
    ):
        with pytest.raises(UsageError, match=said):
            bnfold.fold_onnx(block(0.3), calibration=samples(5), **options)
    zero: dict[str, Any] = {"x": np.zeros((5, CHANNELS, 6, 6), np.float32)}
    with pytest.raises(UsageError, match="no value was given for the input 'x'"):
        bnfold.fold_onnx(block(0.3), quantize_for="int8", calibration={})
    with pytest.raises(UsageError, match="on the calibration data: give other samples"):
        bnfold.fold_onnx(dead(), quantize_for="int8", calibration=zero)


def dead() -> onnx.ModelProto:
    """Its outputs are zero where its input is."""
    g = Build(seed=3)
    x = g.input("x", ("N", CHANNELS, 6, 6))
    parts = [g.conv(x, CHANNELS, k, pads=k // 2, bias=False) for k in (3, 1)]
    g.output(g.op("Add", *parts))
    return g.model()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(block(0.5), tmp_path / "in.onnx")
    np.savez(tmp_path / "x.npz", **samples(quiet=1e-3))
    paths = tmp_path / "in.onnx", tmp_path / "out.onnx", tmp_path / "x.npz"
    status = main(["fold", *map(str, paths[:2]), "--for", "int8", "--calibration-data-path", str(paths[2])])
    assert status == 0
    assert ": apart\n" in capsys.readouterr().out
    assert convolutions(onnx.load(paths[1])) == 2
    assert main(["fold", str(paths[0]), "--calibration-data-path", str(paths[2])]) == 2
    assert "--calibration-data-path has nothing to do without --for int8" in capsys.readouterr().err
