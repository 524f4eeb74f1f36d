"""Random models with dead channels: without them they compute the same, and are as small as the report says.

The number of graphs is small here; BNFOLD_GRAPHS=5000 runs more.
"""

from __future__ import annotations

import os
from collections import Counter

import numpy as np
import onnx
import pytest

from bnfold.api import fold_loaded
from bnfold.errors import BnfoldError
from bnfold.fold.dropped import Dropped
from bnfold.onnx_graph.dead.drop import drop_dead_channels
from bnfold.onnx_graph.files import load
from bnfold.verify import verify
from tests.onnx_graph.dead.planted import Grower, counted, planted
from tests.onnx_graph.look import difference, feeds, run

GRAPHS = int(os.environ.get("BNFOLD_GRAPHS", "300"))
NEAR = 1e-5  # float32 rounding through a dozen layers


def dropped_from(model: onnx.ModelProto, fold: bool) -> tuple[onnx.ModelProto, Dropped]:
    loaded = load(model)
    if fold:
        loaded, report = fold_loaded(loaded, verify=False, drop_dead_channels=True)
        assert report.dropped is not None
        return loaded.to_proto(), report.dropped
    dropped = drop_dead_channels(loaded)
    return loaded.to_proto(), dropped


def same(model: onnx.ModelProto, result: onnx.ModelProto, seed: int) -> None:
    onnx.checker.check_model(result, full_check=True)
    feed = feeds(model, seed)
    if not difference(run(model, feed), run(result, feed)) <= NEAR:  # rounding, or wrong? float64 tells
        check = verify(model, result, rtol=NEAR, inputs=feed)
        assert check.status == "passed", f"seed {seed}: {check}"


@pytest.mark.parametrize("fold", [False, True])
def test_nets_with_dead_channels(fold: bool) -> None:
    layers: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for seed in range(GRAPHS):
        model = onnx.shape_inference.infer_shapes(Grower(seed).grow().model())
        result, dropped = dropped_from(model, fold)
        same(model, result, seed)
        if not fold:
            assert counted(model) - counted(result) == dropped.parameters, seed
            assert dropped.parameters == sum(layer.parameters for layer in dropped.layers), seed
        layers.update(layer.op for layer in dropped.layers)
        reasons.update(kept.reason for kept in dropped.kept)
    print(layers, reasons)


@pytest.mark.parametrize("fold", [False, True])
def test_any_graph_with_dead_channels(fold: bool) -> None:
    for seed in range(GRAPHS):
        model = planted(seed)
        result, _ = dropped_from(model, fold)
        same(model, result, seed)
