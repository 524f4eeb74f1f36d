"""What the report, the command line and a failed check say of dead channels."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import bnfold
from bnfold.cli import fold
from bnfold.cli.app import main
from bnfold.report.channels import CutLayer, Dropped
from tests.onnx_graph.look import difference, feeds, run
from tests.passes.channels.dropping import Net, counted


def net() -> onnx.ModelProto:
    """conv, bn (scale 0 in channels 1 and 2), Relu, conv; channel 0 cannot pass the padded conv beside it."""
    g = Net()
    y = g.layer(g.image(), name="conv1")
    gamma, mean, var = (g.const(np.array(v), "p") for v in ([1.0, 0, 0, 2], [0.0] * 4, [1.0] * 4))
    y = g.op("BatchNormalization", y, gamma, g.const(np.array([0, 0.5, -0.5, 1]), "p"), mean, var, name="bn")
    y = g.op("Relu", y, name="relu")
    g.output(g.layer(y, 2, name="conv2"))
    return g.model()


def test_it_is_off_unless_asked_for() -> None:
    folded, report = bnfold.fold_onnx(net())
    assert report.dropped is None
    assert report.to_dict()["dropped"] is None
    shapes = {tensor.name: list(tensor.dims) for tensor in folded.graph.initializer}
    assert shapes["conv1_weight"] == [4, 3, 1, 1]


def test_the_report() -> None:
    model = net()
    folded, report = bnfold.fold_onnx(model, drop_dead_channels=True)
    without, _ = bnfold.fold_onnx(model)
    assert report.verification.status == "passed"
    assert report.to_dict()["dropped"] == {
        "channels": 2,
        "parameters": 2 * 3 + 2 + 2 * 2,
        "multiplications": 36 * (2 * 3 + 2 * 2),
        "layers": [
            {"name": "conv1", "op": "Conv", "outputs": (1, 2), "inputs": (), "parameters": 8,
             "multiplications": 216, "moved": []},
            {"name": "conv2", "op": "Conv", "outputs": (), "inputs": (1, 2), "parameters": 4,
             "multiplications": 144, "moved": [{"channel": 1, "value": 0.5}]},
        ],
        "kept": [],
    }  # fmt: skip
    assert counted(without) - counted(folded) == report.dropped.parameters
    assert json.loads(report.to_json())["dropped"]["layers"][0]["outputs"] == [1, 2]
    lines = str(report).splitlines()
    assert "conv1  Conv      -2               -8          -216" in lines
    assert "conv2  Conv               -2      -4          -144             0.5" in lines
    assert "2 channels dropped: 12 parameters, 360 multiplications" in lines


def test_unknown_sizes_have_no_count() -> None:
    model = net()
    for info in (*model.graph.input, *model.graph.output):
        for axis in (0, 2, 3):
            info.type.tensor_type.shape.dim[axis].dim_param = f"d{axis}"
    _, report = bnfold.fold_onnx(model, drop_dead_channels=True)
    assert report.dropped.multiplications is None
    assert [layer.multiplications for layer in report.dropped.layers] == [None, None]
    assert "12 parameters, unknown multiplications" in str(report)


def test_nothing_dead_changes_nothing() -> None:
    g = Net()
    g.output(g.op("Tanh", g.layer(g.image())))
    model = g.model()
    same, report = bnfold.fold_onnx(model, drop_dead_channels=True)
    assert same.SerializeToString() == model.SerializeToString()
    assert report.notes == ["nothing to fold: the model is unchanged"]
    assert "0 channels dropped: 0 parameters, 0 multiplications" in str(report)
    assert report.verification is None


def test_dropping_alone_is_verified() -> None:
    g = Net()
    g.output(g.layer(g.layer(g.image(), dead={1: 0.5}, name="a"), name="b"))
    _, report = bnfold.fold_onnx(g.model(), drop_dead_channels=True, merge_branches=False)
    assert report.notes == ["nothing to fold"]
    assert report.verification.status == "passed"


def test_a_failed_check_says_that_it_was_this_step(monkeypatch: pytest.MonkeyPatch) -> None:
    import bnfold.passes.channels.cut_layers as layers

    sums = layers.sums
    monkeypatch.setattr(layers, "sums", lambda role: 3 * sums(role))
    with pytest.raises(bnfold.VerifyError, match="no fold broke it, but dropping dead channels did"):
        bnfold.fold_onnx(net(), drop_dead_channels=True, check="run")


def test_before_the_rewriting_for_a_target() -> None:
    g = Net(opset=18)
    y = g.op("Relu", g.layer(g.image(), dead={1: 0.5}, name="a"))
    y = g.op("Relu", g.bn(g.op("Sigmoid", y), "positive"))
    g.output(g.layer(y, 2, name="b"))
    model = g.model()
    folded, report = bnfold.fold_onnx(model, drop_dead_channels=True, target="tensorrt")
    assert report.dropped.channels == 1
    assert report.rewritten
    assert difference(run(model, feeds(model, 1)), run(folded, feeds(model, 1))) < 1e-5


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(net(), "in.onnx")
    assert main(["fold", "in.onnx", "out.onnx", "--drop-dead-channels", "--json", "report.json"]) == 0
    out = capsys.readouterr().out
    assert "2 channels dropped: 12 parameters, 360 multiplications" in out
    assert json.loads((tmp_path / "report.json").read_text())["dropped"]["parameters"] == 12
    old, new = onnx.load("in.onnx"), onnx.load("out.onnx")
    assert [t.dims[0] for t in new.graph.initializer if t.name == "conv1_weight"] == [2]
    assert difference(run(old, feeds(old, 0)), run(new, feeds(new, 0))) < 1e-6


def keys(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set(value) | {key for item in value.values() for key in keys(item)}
    return {key for item in value for key in keys(item)} if isinstance(value, (list, tuple)) else set()


def test_all_keys_are_told_in_the_help_and_in_the_docs() -> None:
    _, report = bnfold.fold_onnx(net(), drop_dead_channels=True)
    found = keys(report.to_dict()["dropped"]) | set(CutLayer._fields)
    page = (Path(__file__).parents[3] / "docs" / "report.md").read_text(encoding="utf-8")
    section = page[page.index("## `dropped`") : page.index("## `verification`")]
    help_text = fold.EPILOG[fold.EPILOG.index('"dropped"') : fold.EPILOG.index('"quantize_for"')]
    told = set(re.findall(r'"(\w+)":', help_text))
    assert told - {"dropped"} == found | {"reason", "blocked_by"}
    assert {key for key in found if f"`{key}`" not in section} == set()


def test_long_lists_are_cut() -> None:
    from bnfold.report.channels import KeptChannels, MovedConstant

    moved = tuple(MovedConstant(i, i / 8) for i in range(9))
    layer = CutLayer("a", "Conv", (), tuple(range(9)), 1234567, 2345678, moved)
    dropped = Dropped([layer], [KeptChannels("b", "Relu", tuple(range(12)), "stays", "c")], 1234567)
    assert list(dropped.rows())[1] == (
        "a", "Conv", "", "-9", "-1,234,567", "-2,345,678", "0, 0.125, 0.25, 0.375 and 5 more",
    )  # fmt: skip
    assert list(dropped.summary()) == [
        "0 channels dropped: 1,234,567 parameters, 2,345,678 multiplications",
        "constant but kept: b (0, 1, 2, 3, 4, 5, 6, 7 and 4 more): c: stays",
    ]


# ranges of inputs


def narrow() -> onnx.ModelProto:
    """Channel 1 of the first conv is never positive for inputs of [0, 1], nor 2 if x[1] stays below 0.5."""
    g = Net()
    w = np.array([[1.0, 1, 1], [1, 1, 1], [0, 1, 0], [-1, 1, 0]])[:, :, None, None]
    y = g.op("Conv", g.image(), g.const(w, "w"), g.const(np.array([0, -4, -0.75, 0]), "c"), name="conv1")
    g.output(g.layer(g.op("Relu", y), 2, 3, pads=[1] * 4, name="conv2"))
    return g.model()


def dropped_with(ranges: Any) -> tuple[int, ...]:
    _, report = bnfold.fold_onnx(narrow(), drop_dead_channels=True, input_ranges=ranges)
    if report.dropped.layers:
        assert report.verification.status == "passed"
        return report.dropped.layers[0].outputs
    return ()


def test_a_range_of_an_input_proves_more() -> None:
    per_channel = np.array([1.0, 0.5, 1.0]).reshape(3, 1, 1)
    assert dropped_with(None) == ()
    assert dropped_with({"x": (-2, 2)}) == ()
    assert dropped_with({"x": (0, 1)}) == (1,)
    assert dropped_with({"x": (0, per_channel)}) == (1, 2)
    assert dropped_with({"x": (-np.inf, 0.5)}) == (1, 2)


def test_without_the_range_the_check_would_fail() -> None:
    model = narrow()
    folded, _ = bnfold.fold_onnx(model, drop_dead_channels=True, input_ranges={"x": (0, 1)}, verify=False)
    x = np.full((2, 3, 6, 6), 3.0, np.float32)
    assert difference(run(model, {"x": x}), run(folded, {"x": x})) > 0.1


def test_given_inputs_must_keep_to_the_range() -> None:
    x = np.full((2, 3, 6, 6), 1.5, np.float32)
    with pytest.raises(bnfold.UsageError, match=r"for the input 'x' leave its range: 1.5 to 1.5"):
        bnfold.fold_onnx(narrow(), drop_dead_channels=True, input_ranges={"x": (0, 1)}, inputs={"x": x})


@pytest.mark.parametrize(
    ("ranges", "words"),
    [
        ({"y": (0, 1)}, r"'y', but the model's inputs are \['x'\]"),
        ({"x": (1, 0)}, "the range of the input 'x' is empty: from 1 to 0"),
        ({"x": (0, np.nan)}, "is empty"),
        ({"x": (0, np.ones((4, 1, 1)))}, r"has shape \(4, 1, 1\); it takes float32 \(2, 3, 6, 6\)"),
        ({"x": (0, np.ones((1, 1, 3, 1, 1)))}, "has shape"),
    ],
)
def test_odd_ranges_are_refused(ranges: Any, words: str) -> None:
    with pytest.raises(bnfold.UsageError, match=words):
        bnfold.fold_onnx(narrow(), drop_dead_channels=True, input_ranges=ranges)


def test_ranges_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(narrow(), "in.onnx")
    assert main(["fold", "in.onnx", "out.onnx", "--drop-dead-channels", "--input-range", "x:0,1"]) == 0
    assert "1 channel dropped" in capsys.readouterr().out
    for flags, words in (
        (["--input-range", "x:0,1"], "--input-range has nothing to do without --drop-dead-channels"),
        (["--drop-dead-channels", *["--input-range", "x:0,1"] * 2], "names one input twice"),
        (["--drop-dead-channels", "--input-range", "z:0,1"], "a range was given for 'z'"),
    ):
        assert main(["fold", "in.onnx", *flags]) == 2
        assert words in capsys.readouterr().err
    for text in ("x", "x:1", "x:1,0", ":0,1", "x:a,b", "x:0,nan"):
        assert main(["fold", "in.onnx", "--drop-dead-channels", "--input-range", text]) == 2
        assert "is not an input's name and range, such as x:-1,1" in capsys.readouterr().err
