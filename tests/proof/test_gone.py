"""Layers beside dropped channels are decided by their weights, and what is wrong with them is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import bnfold
from bnfold.certificate import Certificate
from bnfold.onnx_graph.file.loaded import load
from bnfold.proof.claims import EVALUATED, WEIGHTS
from bnfold.proof.decide import prove
from bnfold.proof.result import Proof
from tests.onnx_graph.build import Build

Folded = tuple[onnx.ModelProto, onnx.ModelProto, Certificate]


def folded(group: int = 1) -> Folded:
    """Conv, batch norm with two dead channels, LeakyRelu (which keeps what is constant, at another value), a
    depthwise one of which the first's dead channels are dead as well if group > 1, and a 1 x 1 that takes the
    constants into its bias.
    """
    g = Build(17, seed=5)
    y = g.conv(g.input("x", (1, 3, 6, 6)), 6, 3, pads=1, name="first")
    y = g.op("LeakyRelu", g.bn(y, scale=[1.5, 0.0, -0.7, 0.0, 0.9, 1.1]), alpha=0.25)
    if group > 1:
        y = g.conv(y, 6, 1, group=6, name="depthwise")
        y = g.op("Tanh", y)
    g.output(g.conv(y, 4, 1, name="last"))
    model = g.model()
    after, report = bnfold.fold_onnx(model, drop_dead_channels=True, certificate=True)
    assert report.certificate is not None
    assert sum(len(layer.outputs) for layer in report.dropped.layers) == (4 if group > 1 else 2)
    return model, after, report.certificate


def proof(made: Folded) -> Proof:
    return prove(load(made[0]), load(made[1]), made[2])


def stored(model: onnx.ModelProto, node: str, slot: int) -> onnx.TensorProto:
    name = next(n for n in model.graph.node if n.name == node).input[slot]
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


@pytest.mark.parametrize("group", [1, 6])
def test_layers_beside_dropped_channels_are_decided_by_their_weights(group: int) -> None:
    found = proof(folded(group))
    assert found.status == "proved", str(found)
    layers = 3 if group > 1 else 2
    assert found.ways[WEIGHTS] == layers
    assert found.ways[EVALUATED] == layers - 1  # the functions between
    assert found.ulps <= 1


@pytest.mark.parametrize("group", [1, 6])
@pytest.mark.parametrize(("node", "slot"), [("first", 1), ("first", 2), ("last", 1), ("last", 2)])
def test_a_number_of_them_that_is_wrong_is_named(node: str, slot: int, group: int) -> None:
    made = folded(group)
    tensor = stored(made[1], node, slot)
    value = numpy_helper.to_array(tensor).copy()
    value.reshape(-1)[1] *= np.float32(1 + 2.0**-18)
    tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    found = proof(made)
    assert found.status == "refuted", str(found)
    assert found.refusal is not None
    assert found.refusal.entry is not None


def changed(certificate: Certificate, **changes: Any) -> Certificate:
    images = dict(certificate.images)
    for key, image in images.items():
        if image is not None and image.cut is not None:
            images[key] = replace(
                image, cut=replace(image.cut, **{k: f(image.cut) for k, f in changes.items()})
            )
    return replace(certificate, images=images)


@pytest.mark.parametrize("group", [1, 6])
@pytest.mark.parametrize(
    "change",
    [
        {"constants": lambda cut: cut.constants + 0.01},
        {"constants": lambda cut: np.where(np.isnan(cut.constants), np.nan, -cut.constants)},
        {"kept": lambda cut: cut.kept[::-1].copy()},
        {"kept": lambda cut: (cut.kept + 1) % cut.constants.size},
    ],
)
def test_a_wrong_claim_about_them_is_refused(change: Any, group: int) -> None:
    original, after, certificate = folded(group)
    assert proof((original, after, changed(certificate, **change))).status != "proved"
