"""Trained networks: the channels that are proven dead leave, the file is smaller by what the report says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch

import bnfold
from tests.onnx_graph.dead.dropping import counted
from tests.onnx_graph.look import difference, run
from tests.torch_graph.trained import NETWORKS


def test_mobilenet(tmp_path: Path) -> None:
    make, picture, _ = NETWORKS["mobilenetv2, embedder"]
    network, x = make(), picture()
    torch.onnx.export(network, (x,), tmp_path / "net.onnx", dynamo=True, external_data=False, verbose=False)
    model = onnx.load(tmp_path / "net.onnx")
    folded, _ = bnfold.fold_onnx(model, verify=False)
    smaller, report = bnfold.fold_onnx(model, drop_dead_channels=True)
    onnx.checker.check_model(smaller, full_check=True)
    assert report.verification.status == "passed"

    dropped = report.dropped
    assert dropped.channels >= 16
    assert (
        counted(folded) - counted(smaller) == dropped.parameters == sum(p.parameters for p in dropped.layers)
    )
    assert dropped.parameters >= 1238
    assert dropped.multiplications >= 1_700_000

    def widths(net: onnx.ModelProto) -> int:
        """Output channels of all convs."""
        stored = {tensor.name: tensor.dims[0] for tensor in net.graph.initializer if tensor.dims}
        return sum(stored[node.input[1]] for node in net.graph.node if node.op_type == "Conv")

    assert widths(folded) - widths(smaller) == dropped.channels
    feed = {model.graph.input[0].name: x.numpy()}
    assert difference(run(model, feed), run(smaller, feed)) < 1e-5
    assert difference(run(folded, feed), run(smaller, feed)) < 1e-6
    with torch.no_grad():
        exact = network.double()(x.double()).numpy()
    off = np.abs(run(smaller, feed)[0] - exact).max() / np.abs(exact).max()
    assert off < 1e-5
