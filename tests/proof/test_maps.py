"""Batch norms that stay, and those that vanish beside a layer: their numbers decide, and nothing is run."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import bnfold
from bnfold.certificate import Image
from bnfold.onnx_graph.file.loaded import load
from bnfold.proof import sums
from bnfold.proof.claims import Wrong
from bnfold.proof.decide import prove
from bnfold.proof.maps import Channels, Map, vanished
from tests.onnx_graph.build import Build
from tests.proof.test_decide import X, graph, node, proof

P, Q = np.array([0.5, -3.0, 7.0]), np.array([1.0, 0.25, -40.0])


def norms() -> dict[str, Any]:
    """Two batch norms."""
    rng = np.random.default_rng(0)
    values = {f"{name}{i}": rng.uniform(0.5, 2, 3) for name in "nm" for i in range(4)}
    return {name: value.astype(np.float32) for name, value in values.items()}


def moved(stored: dict[str, Any]) -> dict[str, Any]:
    """The same, with P*c + Q for what stands between them."""
    wide = {name: value.astype(np.float64) for name, value in stored.items()}
    new = {"n0": P * wide["n0"], "n1": P * wide["n1"] + Q, "m0": wide["m0"] / P, "m2": P * wide["m2"] + Q}
    return stored | {name: value.astype(stored[name].dtype) for name, value in new.items()}


def chain(stored: dict[str, Any]) -> onnx.ModelProto:
    nodes = [
        node("BatchNormalization", "x n0 n1 n2 n3", "c"),
        node("BatchNormalization", "c m0 m1 m2 m3", "d"),
        node("Tanh", "d", "y"),
    ]
    return graph(nodes, stored)


CLAIM = {"c": Image("c", P.reshape(1, 3, 1, 1), Q.reshape(1, 3, 1, 1))}


def test_batch_norms_that_stay_are_decided_by_their_numbers() -> None:
    stored = norms()
    found = proof(chain(stored), chain(moved(stored)), CLAIM)
    assert (found.status, found.ways) == ("proved", {"channels": 2, "identical": 1}), str(found)


@pytest.mark.parametrize("name", ["n0", "n1", "m0", "m2"])
def test_a_batch_norm_that_stays_with_a_wrong_number_is_refuted(name: str) -> None:
    stored = norms()
    other = moved(stored)
    other[name][1] *= np.float32(1 + 2.0**-16)
    found = proof(chain(stored), chain(other), CLAIM)
    assert found.status == "refuted", str(found)
    assert found.refusal is not None
    assert found.refusal.tensor == ("c" if name.startswith("n") else "d")


def test_a_claim_that_is_off_is_refuted_where_batch_norms_stay() -> None:
    stored = norms()
    claim = {"c": Image("c", P.reshape(1, 3, 1, 1), Q.reshape(1, 3, 1, 1) + 0.01)}
    assert proof(chain(stored), chain(moved(stored)), claim).status == "refuted"


def branches() -> onnx.ModelProto:
    """A batch norm of a sum beside a Conv of it, with a zero added in between, as torch exports them."""
    g = Build(seed=5, signs="positive")
    total = g.op("Add", g.conv(g.input("x", X), 6, 3, bias=False), g.conv(g.input("z", X), 6, 3, bias=False))
    same = g.op("Add", g.bn(total), g.const(np.zeros(1, np.float32), "zero"))
    g.output(g.op("Tanh", g.op("Add", same, g.bn(g.conv(total, 6, 1, bias=False)))))
    return g.model()


@pytest.mark.parametrize("looser", [0.0, 2.0**-23])
@pytest.mark.parametrize("off", [2e-8, 1e-5])
def test_what_is_left_of_large_shifts_is_not_judged_by_numbers(looser: float, off: float) -> None:
    """A shift came and went, and was rounded on its way: only evaluation tells what that may leave."""
    found = Map(np.ones(3), np.full(3, -0.03), np.full(3, 0.03), 0.0)
    there, here = Image("x"), Image("y", 1.0, np.full((3, 1, 1), 0.03 + off))
    at = Channels(-3, 3, 4, 1)
    if looser and off < 1e-6:
        assert not vanished(found, there, here, at, "norm", looser)
    else:
        with pytest.raises(Wrong, match="what vanished is not what its tensors say"):
            vanished(found, there, here, at, "norm", looser)


def test_a_batch_norm_that_vanishes_beside_a_conv_is_a_part_of_their_kernel() -> None:
    """What both read has another scale and shift in the folded model. A changed number is named."""
    model = branches()
    after, report = bnfold.fold_onnx(model, verify=False, certificate=True)
    found = prove(load(model), load(after), report.certificate)
    assert found.status == "proved", str(found)
    assert found.ways["sums"] == 1
    assert found.ways["evaluated"] == 1  # the sum of two tensors, of other scales
    for tensor in after.graph.initializer:
        if tensor.name.endswith("weight") and len(tensor.dims) == 4 and tensor.dims[1] == 6:
            value = numpy_helper.to_array(tensor).copy()
            value[2, 3] += np.float32(3e-6) * np.abs(value).max()
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    refusal = prove(load(model), load(after), report.certificate).refusal
    assert refusal is not None
    assert refusal.entry is not None
    assert refusal.entry.at == (0, 2, 3)


def test_a_layer_of_a_tensor_is_multiplied_by_no_identity_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its numbers are one for each channel: as a matrix they would take the square of that, and more time."""

    def spread(w: Any, groups: int) -> Any:
        assert w.shape[1:] != (1, 1)
        return w

    monkeypatch.setattr(sums, "_coarse", spread)
    g = Build(seed=6, signs="positive")
    x = g.input("x", X)
    g.output(g.op("Add", g.bn(g.conv(x, 6, 3, pads=1, bias=False)), g.bn(g.conv(x, 6, 1, bias=False))))
    model = g.model()
    after, report = bnfold.fold_onnx(model, verify=False, certificate=True)
    found = prove(load(model), load(after), report.certificate)
    assert (found.status, found.ways) == ("proved", {"sums": 1}), str(found)
