"""Random models with dead channels: without them they compute the same, and are as small as the report says.

The number of graphs is small here; BNFOLD_GRAPHS=5000 runs more.
"""

from __future__ import annotations

import os
from collections import Counter

import numpy as np
import onnx
import pytest

from bnfold.api.fold_onnx import fold_loaded
from bnfold.errors import BnfoldError
from bnfold.onnx_graph.file.loaded import load
from bnfold.options import Check, Fold
from bnfold.passes.channels.drop import drop_dead_channels
from bnfold.report.channels import Dropped
from bnfold.verify.models import verify
from tests.onnx_graph.damage import damage
from tests.onnx_graph.look import difference, feeds, run
from tests.passes.channels.dropping import counted, stated_sizes_hold
from tests.passes.channels.planted import Grower, planted

GRAPHS = int(os.environ.get("BNFOLD_GRAPHS", "120"))
NEAR = 1e-5  # float32 rounding through a dozen layers

# what the nets must reach, or they test less than they claim
LAYERS = ("Add", "BatchNormalization", "Concat", "Conv", "ConvTranspose", "Gemm", "MatMul", "PRelu")
REASONS = ("is a graph output", "is not constant", "one channel of it has to stay", "zero padding")


def dropped_from(model: onnx.ModelProto, fold: bool) -> tuple[onnx.ModelProto, Dropped]:
    loaded = load(model)
    if fold:
        loaded, report = fold_loaded(loaded, Fold(drop_dead_channels=True), Check(verify=False))
        assert report.dropped is not None
        return loaded.to_proto(), report.dropped
    dropped = drop_dead_channels(loaded)
    return loaded.to_proto(), dropped


def same(model: onnx.ModelProto, result: onnx.ModelProto, seed: int) -> None:
    onnx.checker.check_model(result, full_check=True)
    stated_sizes_hold(result)
    feed = feeds(model, seed)
    with np.errstate(invalid="ignore"):  # outputs of zeros
        apart = difference(run(model, feed), run(result, feed))
    if not apart <= NEAR:  # rounding, or wrong? float64 tells
        check = verify(model, result, Check(rtol=NEAR, inputs=feed))
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
        reasons.update(word for kept in dropped.kept for word in REASONS if word in kept.reason)
        assert all(kept.reason and kept.blocked_by for kept in dropped.kept), seed
    assert not [op for op in LAYERS if not layers[op] and not (fold and op == "BatchNormalization")], layers
    assert not [word for word in REASONS if not reasons[word]], reasons


@pytest.mark.parametrize("fold", [False, True])
def test_any_graph_with_dead_channels(fold: bool) -> None:
    dropped = 0
    for seed in range(GRAPHS):
        model = planted(seed)
        result, found = dropped_from(model, fold)
        same(model, result, seed)
        dropped += found.channels > 0
    assert dropped > GRAPHS // 20


def test_once_more_nothing_leaves() -> None:
    """What could leave has left; what depends on more than one step is found in one.

    But for a grouped conv of which one group is left: its channels are no longer tied to each other.
    """
    for seed in range(GRAPHS):
        once, first = dropped_from(Grower(seed).grow().model(), False)
        groups = {n.name: a.i for n in once.graph.node for a in n.attribute if a.name == "group"}
        if not any(groups.get(layer.name) == 1 for layer in first.layers):
            assert dropped_from(once, False)[1].layers == [], seed


def test_damaged_nets_end_in_one_clear_error_or_in_a_result() -> None:
    ends, messages = {"dropped": 0, "refused": 0}, []
    for seed in range(4 * GRAPHS):
        try:
            model = onnx.shape_inference.infer_shapes(Grower(seed).grow().model())
            fold_loaded(load(damage(model, seed)), Fold(drop_dead_channels=True), Check(verify=False))
            ends["dropped"] += 1
        except BnfoldError as error:
            messages.append(str(error))
            ends["refused"] += 1
    assert all(message and "\n" not in message for message in messages)
    assert min(ends.values()) > GRAPHS // 10, ends
