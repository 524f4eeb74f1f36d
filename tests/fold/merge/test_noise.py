"""What rounding adds, as predicted from weights, beside what numpy measures; and which merges that allows."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import bnfold
from bnfold.fold.merge import noise as of_noise
from bnfold.fold.merge import sum_noise
from bnfold.fold.merge.noise import Judge, Rounding, power_of
from bnfold.fold.merge.plan import maps_beside, merge
from bnfold.fold.merge.view import View
from bnfold.onnx_graph.file.loaded import load
from bnfold.onnx_graph.read import read
from bnfold.report.fold import Noise
from tests.onnx_graph.build import Array, Build
from tests.onnx_graph.look import run

IMAGE = (4, 32, 12, 12)
CLOSE = 1.0  # dB between what is predicted of weights and what numpy measures


def rounded(weight: Array, bits: int, rows: bool) -> Array:
    axes = tuple(range(1, weight.ndim)) if rows else None
    step = np.abs(weight).max(axes, keepdims=True) / (2 ** (bits - 1) - 1)
    result: Array = np.round(weight / step) * step
    return result


def decibels(ratio: float) -> float:
    return float(10 * np.log10(ratio))


@pytest.mark.parametrize(("bits", "rows"), [(8, True), (8, False), (4, True), (4, False)])
def test_weights(bits: int, rows: bool) -> None:
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(1, 40, 16, 9)) * rng.uniform(0.3, 1, size=(1, 40, 1, 1))
    kernel[:, :, ::3] = 0  # rounds to itself
    flat = kernel[0]
    measured = ((rounded(flat, bits, rows) - flat) ** 2).reshape(40, -1).sum(1)
    predicted = Rounding(bits, rows).of_weights(kernel)
    assert predicted.shape == (40,)
    assert abs(decibels(predicted.sum() / measured.sum())) < 0.2
    powers = rng.uniform(0, 4, size=16)
    weighed = ((rounded(flat, bits, rows) - flat) ** 2 * powers[None, :, None]).sum()
    assert abs(decibels(Rounding(bits, rows).of_weights(kernel, powers).sum() / weighed)) < 0.3


def test_what_is_exact() -> None:
    scales = np.random.default_rng(0).normal(size=(6, 1, 1, 1, 1))  # a depthwise 1 x 1
    assert not Rounding(8, True).of_weights(scales).any()
    assert np.count_nonzero(Rounding(8, False).of_weights(scales)) == 5  # but for the largest
    assert not Rounding(8, True).of_weights(np.zeros((1, 2, 3))).any()
    assert power_of(np.full((2, 3, 4, 5), 2.0)).tolist() == [80.0] * 6


def test_small_weights_beside_a_large_one_are_lost_and_no_more() -> None:
    kernel = np.full((1, 1, 100), 1e-4)
    kernel[0, 0, 0] = 1.0
    assert Rounding(8).of_weights(kernel)[0] == pytest.approx(99e-8)


def test_small_merges_do_not_add_up() -> None:
    judge = Judge("int8", True)
    assert judge.noise("y", 1e-4, 1e-3) == Noise("int8", -40, -30)
    again = judge.noise("y", 1e-3, 1e-3)  # the sum as the first merge has left it
    assert again is not None
    assert again.apart_db == -40
    assert judge.refuses(again)
    assert judge.refuses(None)
    assert judge.noise("z", 1e-4, float("nan")) is None
    assert not Judge("int8", False).refuses(again)


def net(identity: float = 1.0) -> onnx.ModelProto:
    """A 3 x 3, a 1 x 1 and the tensor itself, scaled, between a Tanh and a Sigmoid."""
    g = Build(seed=5)
    x = g.op("Tanh", g.input("x", IMAGE))
    wide = g.conv(x, 32, 3, pads=1, name="wide")
    one = g.conv(x, 32, name="one", w=g.const(g.normal((32, 32, 1, 1), 0.1), "w"))
    self_ = g.op("Mul", x, g.const(g.rng.uniform(0.8, 1.2, (32, 1, 1)) * identity), name="self")
    g.output(g.op("Sigmoid", g.op("Add", g.op("Add", wide, one), self_, name="sum")))
    return g.model()


def block(target: str | None, identity: float = 1.0) -> tuple[Any, Any]:
    return bnfold.fold_onnx(net(identity), quantize_for=target)


def left(model: onnx.ModelProto) -> list[str]:
    return sorted(node.op_type for node in model.graph.node if node.op_type not in ("Tanh", "Sigmoid"))


def test_the_identity_stays_and_what_is_harmless_does_not() -> None:
    full, report = block(None)
    assert left(full) == ["Conv"]
    assert report.quantize_for is None
    free, report = block("int8")
    assert left(free) == ["Add", "Conv", "Mul"]
    (merged,) = report.merged
    assert (merged.name, merged.replaces[0]) == ("wide", "one")
    assert merged.noise is not None
    assert merged.noise.target == "int8"
    assert merged.noise.added_db < 0.5
    (apart,) = report.apart
    assert apart.names[0] == "wide"
    assert apart.noise is not None
    assert apart.noise.added_db > 1
    assert apart.reason == (
        f"stay apart for int8: as one node, rounding would add {apart.noise.added_db:.1f} dB of noise"
    )
    assert report.verification.proof.status == "proved"
    small, report = block("int8", identity=0.05)
    assert left(small) == ["Conv"]
    assert report.verification.proof.status == "proved"


def test_one_scale_for_all_rows_is_told_apart_from_one_for_each() -> None:
    left_of = [left(block(target, identity=0.4)[0]) for target in ("int8", "int8-per-tensor")]
    assert left_of == [["Conv"], ["Add", "Conv", "Mul"]]


def test_below_8_bits_branches_stay_apart() -> None:
    apart, report = block("int4", identity=0.05)
    assert left(apart) == ["Add", "Add", "Conv", "Conv", "Mul"]
    assert not report.merged
    (line,) = report.apart
    assert line.reason.startswith("stay apart below 8 bits: as one node, rounding would add ")
    assert line.names[:2] == ("wide", "one")


def test_what_the_runtime_rounds_is_minded() -> None:
    """Where sums are not rounded, branches apart have less noise, and less may become one."""
    g = Build(seed=5)
    x = g.op("Sigmoid", g.input("x", IMAGE))
    one = g.conv(x, 32, name="one", w=g.const(g.normal((32, 32, 1, 1), 0.3), "w"))
    g.output(g.op("Sigmoid", g.op("Add", g.conv(x, 32, 3, pads=1, name="wide"), one)))
    graph = read(load(g.model()), "skip")
    merged = []
    for sums in (True, False):
        judge = Judge("int8", True)
        judge.rounding = judge.rounding._replace(sums=sums)
        merged.append(bool(merge(graph, View(judge=judge)).merged))
    assert merged == [True, False]


def sum_of(model: onnx.ModelProto, rows: bool | None) -> Array:
    """What the node before the last one gives; its weights rounded to 8 bits, unless `rows` is None."""
    new = onnx.ModelProto.FromString(model.SerializeToString())
    for tensor in new.graph.initializer:
        if rows is not None and len(tensor.dims) == 4:
            weight = rounded(numpy_helper.to_array(tensor), 8, rows).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    new.graph.output[0].CopyFrom(onnx.ValueInfoProto(name=new.graph.node[-1].input[0]))
    feed = {"x": np.random.default_rng(1).normal(size=IMAGE).astype(np.float32) * 4}
    return np.asarray(run(new, feed)[0], np.float64)


@pytest.mark.parametrize("target", ["int8", "int8-per-tensor"])
def test_predicted_is_what_numpy_measures(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A net of three branches whose weights are rounded by numpy, apart and as one."""
    for module in (of_noise, sum_noise):
        monkeypatch.setattr(module, "TENSOR", 0.0)  # numpy rounds no tensors
    found = []
    for model in (block("int4")[0], block(None)[0]):
        error = sum_of(model, target == "int8") - sum_of(model, None)
        found.append(decibels((error**2).mean()))
    (merged,) = merge(read(load(net()), "skip"), View(judge=Judge(target, False))).merged
    assert merged.noise is not None
    assert merged.noise.added_db > 5
    assert merged.noise.added_db == pytest.approx(found[1] - found[0], abs=CLOSE)


def test_two_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    g = Build(seed=2)
    x = g.op("Sigmoid", g.input("x", IMAGE))
    g.output(g.op("Sigmoid", g.conv(g.conv(x, 128, name="one"), 32, name="two")))
    (merged,) = bnfold.fold_onnx(g.model(), quantize_for="int4")[1].merged
    assert merged.noise is not None
    assert merged.noise.added_db < -2  # the weights are rounded once, not twice
    monkeypatch.setattr(of_noise, "ALLOWED", -100.0)
    _, report = bnfold.fold_onnx(g.model(), quantize_for="int8")
    assert not report.merged
    (apart,) = report.apart
    assert apart.names == ("one", "two")
    assert apart.reason.startswith("stay apart for int8: as one node, rounding would add -")


def test_batch_norms_that_are_branches_stay_branches() -> None:
    """With scales above zero they could go around the sum, through both Relus, and spread their channels."""
    g = Build(seed=1)
    x = g.op("Relu", g.conv(g.input("x", IMAGE), 32, name="before"))
    y = g.op("Relu", g.op("Add", g.conv(x, 32, 3, pads=1, name="wide"), g.bn(x, "positive", name="norm")))
    g.output(g.conv(y, 8, name="behind"))
    plain, _ = bnfold.fold_onnx(g.model(), merge_branches=False)
    assert left(plain) == ["Add", "Conv", "Conv", "Conv", "Relu", "Relu"]
    assert maps_beside(read(load(g.model()), "skip"), View()) == {"norm"}
    folded, report = bnfold.fold_onnx(g.model(), quantize_for="int8")
    (entry,) = report.kept
    assert (entry.name, entry.blocked_by) == ("norm", "")
    assert entry.reason.startswith("is a branch beside linear nodes: its scales would spread")
    assert "BatchNormalization" in left(folded)
    assert bnfold.fold_onnx(g.model(), quantize_for="int8", skip=["norm"])[1].kept[0].reason == (
        "skipped on request"
    )


def test_the_report_tells_the_noise() -> None:
    _, report = block("int8")
    (merged,), (apart,) = report.merged, report.apart
    text, data = str(report), report.to_dict()
    assert "noise for int8, dB" in text
    assert merged.noise is not None
    assert f"{merged.noise.apart_db:.1f} -> {merged.noise.merged_db:.1f}" in text
    assert f"apart: {', '.join(apart.names)}: stay apart for int8: as one node" in text
    assert "int8 with one scale" not in text
    assert data["quantize_for"] == "int8"
    assert data["merged"][0]["noise"] == merged.noise._asdict()
    assert set(data["apart"][0]["noise"]) == {"target", "apart_db", "merged_db"}


def test_without_a_target_the_report_warns() -> None:
    _, report = block(None)
    (merged,) = report.merged
    assert merged.noise is not None
    assert merged.noise.target == "int8-per-tensor"
    loss = f"would add more than 0.5 dB of noise (up to {merged.noise.added_db:.1f} dB: wide)"
    assert f"note: int8 with one scale a weight: 1 of these merges {loss}" in str(report)
    assert report.notes == []
    assert "int8" not in str(block(None, identity=0.05)[1])
