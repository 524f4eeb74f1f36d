"""`bnfold equalize` with the options of the fold; tests/api/test_equalize.py has what it balances."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.cli.command import operators, refused, run
from tests.onnx_graph.look import difference, feeds
from tests.onnx_graph.look import run as outputs
from tests.passes.channels.dropping import Net


@pytest.fixture
def dying(folder: Path) -> onnx.ModelProto:
    """A conv of four channels, a Relu, a conv; channel 1 is dead, and channel 2 for inputs of [0, 1].

    As dying.onnx in the folder.
    """
    g = Net()
    w = np.array([[40.0, 40, 40], [0, 0, 0], [1, 1, 1], [0, 1, 0]])[:, :, None, None]
    bias = np.array([0, 0.5, -4, -0.75])
    y = g.op("Relu", g.op("Conv", g.image(), g.const(w, "w"), g.const(bias, "c"), name="conv1"))
    g.output(g.layer(y, 2, name="conv2"))
    made: onnx.ModelProto = g.model()
    onnx.save(made, "dying.onnx")
    return made


@pytest.mark.parametrize(
    ("given", "channels"),
    [
        ([], 4),
        (["--drop-dead-channels"], 3),
        (["--drop-dead-channels", "--input-range", "x:0,1"], 2),
    ],
)
def test_dead_channels_leave_before(dying: onnx.ModelProto, given: list[str], channels: int) -> None:
    assert run("equalize", "dying.onnx", "out.onnx", *given, "--json", "r.json") == 0
    after = onnx.load("out.onnx")
    [weight] = [tensor for tensor in after.graph.initializer if tensor.name == dying.graph.node[0].input[1]]
    assert weight.dims[0] == channels
    feed = {name: np.clip(value, 0, 1) for name, value in feeds(dying, 0).items()}
    assert difference(outputs(dying, feed), outputs(after, feed)) < 1e-6
    report = json.loads(Path("r.json").read_text())
    assert (report["fold"]["dropped"] is not None) == bool(given)
    assert report["verification"]["status"] == "passed"


def test_branches_are_merged_unless_told_otherwise(folder: Path) -> None:
    g = Net()
    x = g.image()
    g.output(g.op("Add", g.layer(x, name="a"), g.layer(x, name="b")))
    onnx.save(g.model(), "branches.onnx")
    assert run("equalize", "branches.onnx", "merged.onnx") == 0
    assert run("equalize", "branches.onnx", "plain.onnx", "--no-merge-branches") == 0
    assert operators("merged.onnx") == ["Conv"]
    assert sorted(operators("plain.onnx")) == ["Add", "Conv", "Conv"]


def test_without_a_fold(folder: Path) -> None:
    assert run("equalize", "in.onnx", "out.onnx", "--no-fold", "--json", "r.json") == 0
    assert operators("out.onnx") == ["Conv", "BatchNormalization"]
    assert json.loads(Path("r.json").read_text())["fold"] is None


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--no-fold", "--no-merge-branches"], "--no-merge-branches has nothing to do with --no-fold"),
        (["--no-fold", "--drop-dead-channels"], "--drop-dead-channels has nothing to do with --no-fold"),
        (["--no-fold", "--lower-batch-statistics"], "--lower-batch-statistics has nothing to do with"),
        (["--input-range=x:0,1"], "--input-range has nothing to do without --drop-dead-channels"),
        (["--drop-dead-channels", "--input-range", "z:0,1"], "a range was given for 'z'"),
        (["--target", "tensorrt"], "unrecognized arguments: --target tensorrt"),
    ],
)
def test_bad_usage(folder: Path, capsys: pytest.CaptureFixture[str], given: list[str], told: str) -> None:
    assert told in refused(capsys, folder, 2, "equalize", "in.onnx", "out.onnx", *given)
