"""tools/order: what it tells of a file is what is in it. The whole tool takes half a minute for a seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

pytest.importorskip("sklearn", reason="the digits lie in scikit-learn, of the extra train-demo")

from tests.onnx_graph.build import Build
from tools._bench.quantized import outputs
from tools._data.images import digits
from tools._demos.order import Step, by_chance, measured


def classifier() -> onnx.ModelProto:
    """A convolution, a ReLU, a mean and a layer of ten."""
    g = Build(seed=0)
    x = g.op("Relu", g.conv(g.input("x", ("N", 1, 8, 8)), 6, 3, name="conv"))
    x = g.op("ReduceMean", x, g.ints(2, 3), keepdims=0)
    g.output(g.op("Gemm", x, g.const(g.rng.normal(size=(6, 10))), name="last"))
    return g.model()


def test_a_step_is_measured_as_float_and_as_int8(tmp_path: Path) -> None:
    images = digits(0).first(64, 32)
    path = tmp_path / "net.onnx"
    onnx.save(classifier(), path)
    found = measured(Step("folded", path, {"kept": 0}), images)
    answers = torch.from_numpy(outputs(path, [images.test.numpy()]))
    assert found["accuracy"] == images.accuracy(answers)
    assert found["bytes"] == path.stat().st_size
    assert (found["name"], found["kept"], found["batch_norms"], found["nodes"]) == ("folded", 0, 0, 4)
    model = onnx.load(path)
    assert found["parameters"] == sum(int(np.prod(each.dims)) for each in model.graph.initializer)
    for kind in ("per_tensor", "per_channel"):
        quantized, corrected = found[kind]["quantized"], found[kind]["corrected"]
        assert 20 < quantized["db"] < 70
        assert corrected["db"] > quantized["db"] - 1
        assert 0 <= corrected["accuracy"] <= 1


def test_what_chance_does_is_drawn_alike_each_time() -> None:
    images = digits(0).first(64, 32)
    found = by_chance(classifier(), images)
    assert 20 < found["from"] < found["db"] < found["to"] < 70
    assert 0.1 < found["deviation"] < found["to"] - found["from"]
    assert found == by_chance(classifier(), images)
