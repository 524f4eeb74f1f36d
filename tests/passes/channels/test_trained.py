"""Trained networks: the channels that are proven dead leave, the file is smaller by what the report says."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

import bnfold
from tests.onnx_graph.look import difference, run
from tests.passes.channels.dropping import counted, stated_sizes_hold
from tests.torch_graph.trained import NETWORKS, exported

pytestmark = pytest.mark.xdist_group("exports of trained networks")
MEAN, STD = (np.reshape(v, (3, 1, 1)) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
PIXELS = (0 - MEAN) / STD, (1 - MEAN) / STD  # what an image is after the usual normalization

# the network, the range of its input, and at least how many channels, parameters, multiplications leave
CASES = [
    ("mobilenetv2, embedder", None, 24, 2370, 1_839_705),
    ("mobilenetv2, embedder", PIXELS, 36, 2694, 5_753_433),
    ("mobilenetv2, ImageNet", PIXELS, 8, 216, 2_609_152),
]


def widths(model: onnx.ModelProto) -> int:
    """Output channels of all convs."""
    stored = {tensor.name: tensor.dims[0] for tensor in model.graph.initializer if tensor.dims}
    return sum(stored[node.input[1]] for node in model.graph.node if node.op_type == "Conv")


@pytest.mark.parametrize(("name", "range_", "channels", "parameters", "products"), CASES)
def test_mobilenet(
    name: str,
    range_: tuple[object, object] | None,
    channels: int,
    parameters: int,
    products: int,
) -> None:
    make, picture, batch_norms = NETWORKS[name]
    network, x = make(), picture()
    model, feed = exported(name)
    ranges = None if range_ is None else {model.graph.input[0].name: range_}
    folded, _ = bnfold.fold_onnx(model, verify=False)
    smaller, report = bnfold.fold_onnx(model, drop_dead_channels=True, input_ranges=ranges)
    onnx.checker.check_model(smaller, full_check=True)
    stated_sizes_hold(smaller)
    assert len(report.folded) == batch_norms
    assert report.verification.status == "passed"

    dropped = report.dropped
    assert dropped.channels >= channels
    assert dropped.parameters >= parameters
    assert dropped.multiplications >= products
    assert counted(folded) - counted(smaller) == dropped.parameters
    assert dropped.parameters == sum(layer.parameters for layer in dropped.layers)
    assert widths(folded) - widths(smaller) == dropped.channels

    assert difference(run(model, feed), run(smaller, feed)) < 1e-5
    assert difference(run(folded, feed), run(smaller, feed)) < 1e-6
    with torch.no_grad():
        exact = network.double()(x.double()).numpy()
    [found] = run(smaller, feed)
    assert np.abs(found - exact).max() < 1e-5 * np.abs(exact).max()
    if "ImageNet" in name:
        assert found.argmax() == 285  # an Egyptian cat
