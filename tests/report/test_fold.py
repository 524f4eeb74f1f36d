"""What the report says beside folded and kept: dead channels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

import bnfold

SUBNORMAL = 5.6e-45  # as found in trained models


def net(dtype: Any) -> Any:
    """Two convs with batch norms; in the first, channel 1 has scale 0, and 3 no variance."""
    rng = np.random.default_rng(0)
    values = {"w": rng.standard_normal((4, 4, 1, 1)), "v": rng.standard_normal((4, 4, 1, 1))}
    for i in (1, 2):
        values |= {f"gamma{i}": np.ones(4), f"beta{i}": np.ones(4), f"mean{i}": np.zeros(4)}
    values |= {"var1": np.array([1, 1, 1, SUBNORMAL]), "var2": np.ones(4)}
    values["gamma1"] = np.array([1.0, 0.0, 2.0, 1.0])
    tensors = [numpy_helper.from_array(value.astype(dtype), name) for name, value in values.items()]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "conv1"),
        helper.make_node("BatchNormalization", ["a", "gamma1", "beta1", "mean1", "var1"], ["b"], "bn1"),
        helper.make_node("Conv", ["b", "v"], ["c"], "conv2"),
        helper.make_node("BatchNormalization", ["c", "gamma2", "beta2", "mean2", "var2"], ["y"], "bn2"),
    ]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    x, y = (helper.make_tensor_value_info(name, kind, [1, 4, 2, 2]) for name in "xy")
    graph = helper.make_graph(nodes, "net", [x], [y], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])  # read together, and one by one
def test_dead_channels_are_told(dtype: Any) -> None:
    _, report = bnfold.fold_onnx(net(dtype))
    assert [entry.dead_channels for entry in report.entries] == [(1, 3), ()]
    assert report.to_dict()["entries"][0]["dead_channels"] == (1, 3)
    assert "note: 2 dead channels, whose output never changes: bn1 (1, 3)" in str(report).splitlines()


def test_a_batch_norm_that_stays_tells_them_too() -> None:
    model = net(np.float32)
    _, report = bnfold.fold_onnx(model, skip=["bn1"])
    assert [(entry.outcome, entry.dead_channels) for entry in report.entries] == [
        ("kept", (1, 3)),
        ("folded", ()),
    ]


def test_in_torch_as_well_and_a_long_list_is_cut() -> None:
    module = nn.Sequential(nn.Conv2d(1, 20, 1), nn.BatchNorm2d(20)).eval()
    with torch.no_grad():
        module[1].running_var[:12] = 0
        module[1].bias.normal_()
    _, report = bnfold.fold_module(module, torch.randn(1, 1, 3, 3))
    assert report.entries[0].dead_channels == tuple(range(12))
    text = "12 dead channels, whose output never changes: 1 (0, 1, 2, 3, 4, 5, 6, 7 and 4 more)"
    assert f"note: {text}" in str(report)
