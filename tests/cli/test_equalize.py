"""`bnfold equalize` with the options of the fold; tests/api/test_equalize.py has what it balances."""

from __future__ import annotations

import json
import re
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


def test_what_could_not_be_checked_is_told_on_standard_error(
    dying: onnx.ModelProto, capsys: pytest.CaptureFixture[str]
) -> None:
    """Channels are rescaled between two layers, and nothing runs what comes behind."""
    dying.graph.node.append(
        onnx.helper.make_node("Riddle", [dying.graph.output[0].name], ["z"], domain="nobody")
    )
    dying.opset_import.append(onnx.helper.make_opsetid("nobody", 1))
    dying.graph.output[0].name = "z"
    onnx.save(dying, "strange.onnx")
    assert run("equalize", "strange.onnx", "out.onnx") == 0
    out, err = capsys.readouterr()
    assert "1 region rescaled" in out
    assert err.startswith("bnfold: warning: nothing was verified: ")
    assert err.count("\n") == 1


def test_branches_are_merged_unless_told_otherwise(folder: Path) -> None:
    g = Net()
    x = g.image()
    g.output(g.op("Add", g.layer(x, name="a"), g.layer(x, name="b")))
    onnx.save(g.model(), "branches.onnx")
    assert run("equalize", "branches.onnx", "merged.onnx") == 0
    assert run("equalize", "branches.onnx", "plain.onnx", "--no-merge-branches") == 0
    assert operators("merged.onnx") == ["Conv"]
    assert sorted(operators("plain.onnx")) == ["Add", "Conv", "Conv"]


@pytest.mark.parametrize(("given", "after"), [([], 0), (["--no-fold"], 1)])
def test_a_summary_comes_first(
    folder: Path, capsys: pytest.CaptureFixture[str], given: list[str], after: int
) -> None:
    """That of the fold: the model as it was given, and in the end."""
    assert run("equalize", "in.onnx", "out.onnx", *given, "--json", "r.json") == 0
    head = capsys.readouterr().out.split("\n\n")[0]
    assert head.startswith("opset 17\ninputs x:N,3,8,8:float32\noutputs y:N,6,6,6:float32\n")
    assert re.search(rf"^  BatchNormalization +1 +{after}$", head, re.MULTILINE)
    summary = json.loads(Path("r.json").read_text())["summary"]
    assert summary["before"]["bytes"] == Path("in.onnx").stat().st_size
    assert summary["after"]["multiplications"] == 36 * 6 * 3 * 9
    assert summary["files"] == [{"path": "out.onnx", "bytes": Path("out.onnx").stat().st_size}]


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
