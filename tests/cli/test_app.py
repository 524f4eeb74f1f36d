"""The command line: what it writes, what it refuses, what it says, and with which exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnfold.progress
from bnfold.cli.app import main


def model(
    channels: int = 6, relu_between: bool = False, bn_name: str = "bn", seed: int = 0
) -> onnx.ModelProto:
    """A conv -> [relu ->] batch norm, on an input x of [N, 3, 8, 8]."""
    rng = np.random.default_rng(seed)
    values = {
        "w": rng.normal(size=(channels, 3, 3, 3)),
        "scale": rng.normal(size=channels),
        "shift": rng.normal(size=channels),
        "mean": rng.normal(size=channels),
        "var": rng.uniform(0.5, 2, size=channels),
    }
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], name="conv", kernel_shape=[3, 3])]
    last = "c"
    if relu_between:
        nodes.append(helper.make_node("Relu", ["c"], ["r"], name="relu"))
        last = "r"
    nodes.append(
        helper.make_node("BatchNormalization", [last, "scale", "shift", "mean", "var"], ["y"], name=bn_name)
    )
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", channels, 6, 6])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with the models in.onnx (foldable) and kept.onnx (not)."""
    monkeypatch.chdir(tmp_path)
    onnx.save(model(), "in.onnx")
    onnx.save(model(relu_between=True), "kept.onnx")
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def run(*arguments: str) -> int:
    try:
        return main(arguments)
    except SystemExit as end:
        return int(end.code or 0)


def outputs(path: str, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    [y] = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    return np.asarray(y)


def operators(path: str) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def refused(capsys: pytest.CaptureFixture[str], folder: Path, status: int, *arguments: str) -> str:
    """Run what must fail: that status, one line on stderr, every file as it was. Give the line."""
    before = contents(folder)
    assert run(*arguments) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("bnfold: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert contents(folder) == before
    return err


# -- bnfold fold


def test_fold_writes_an_equal_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (folder / "in.onnx").read_bytes()
    assert run("fold", "in.onnx", "out.onnx", "--json", "report.json") == 0
    assert sorted(contents(folder)) == ["in.onnx", "kept.onnx", "out.onnx", "report.json"]
    assert (folder / "in.onnx").read_bytes() == before
    assert operators("out.onnx") == ["Conv"]

    x = np.random.default_rng(1).normal(size=(2, 3, 8, 8)).astype(np.float32)
    a, b = outputs("in.onnx", x), outputs("out.onnx", x)
    assert np.abs(a - b).max() < 1e-5 * np.abs(a).max()

    report = json.loads((folder / "report.json").read_text())
    assert (report["folded"], report["kept"]) == (1, 0)
    [entry] = report["entries"]
    assert (entry["name"], entry["outcome"], entry["into"]) == ("bn", "folded", ["conv"])
    assert report["verification"] is not None

    out, err = capsys.readouterr()
    assert err == ""
    assert "1 folded, 0 kept" in out
    assert out.splitlines()[-1].startswith("wrote out.onnx (")


def test_without_an_output_it_only_explains(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(folder)
    assert run("fold", "kept.onnx") == 0
    assert contents(folder) == before
    out = capsys.readouterr().out
    assert "0 folded, 1 kept" in out
    assert "relu" in out  # the node to blame
    assert out.splitlines()[-1] == "nothing was written: name an output file to fold into it"


def test_nothing_to_fold_is_a_copy(folder: Path) -> None:
    assert run("fold", "kept.onnx", "out.onnx") == 0
    assert (folder / "out.onnx").read_bytes() == (folder / "kept.onnx").read_bytes()


def test_force_replaces_the_input(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is the input itself; add --force" in refused(capsys, folder, 2, "fold", "in.onnx", "in.onnx")
    assert "is the input itself" in refused(capsys, folder, 2, "fold", "in.onnx", f"../{folder.name}/in.onnx")
    assert run("fold", "in.onnx", "in.onnx", "--force") == 0
    assert operators("in.onnx") == ["Conv"]


def test_an_existing_output_stays(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "out.onnx").write_text("precious")
    assert "out.onnx exists already; add --force" in refused(capsys, folder, 2, "fold", "in.onnx", "out.onnx")
    assert run("fold", "in.onnx", "out.onnx", "--force") == 0
    assert operators("out.onnx") == ["Conv"]


def test_a_dangling_link_is_not_written_through(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "out.onnx").symlink_to("elsewhere.onnx")
    assert "exists already" in refused(capsys, folder, 2, "fold", "in.onnx", "out.onnx")


def test_outputs_are_checked_before_the_work(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "old.json").write_text("{}")
    (folder / "sub").mkdir()
    fold = ("fold", "missing.onnx")  # a file that would be found missing as soon as it is read
    assert "no folder none" in refused(capsys, folder, 2, *fold, "none/out.onnx")
    assert "sub is a folder" in refused(capsys, folder, 2, *fold, "sub")
    assert "old.json exists already" in refused(capsys, folder, 2, *fold, "out.onnx", "--json", "old.json")
    assert "has two uses" in refused(capsys, folder, 2, *fold, "out.onnx", "--json", "out.onnx", "--force")
    assert "has two uses" in refused(capsys, folder, 2, "fold", "in.onnx", "--json", "in.onnx", "--force")
    assert "is not a regular file" in refused(capsys, folder, 2, *fold, "/dev/null", "--force")


def test_a_failed_check_writes_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = ("--check-rtol", "0", "--check-atol", "0")  # folding rounds, so this must fail ...
    monkeypatch.setattr("bnfold.verify.difference.OWN_ERROR", 0.0)  # ... if rounding is no excuse
    error = refused(capsys, folder, 1, "fold", "in.onnx", "out.onnx", "--json", "report.json", *exact)
    assert "bn" in error  # the first fold that broke it


def test_skip(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no_such" in refused(capsys, folder, 2, "fold", "in.onnx", "out.onnx", "--skip", "no_such")
    assert run("fold", "in.onnx", "out.onnx", "--skip", "bn") == 0
    assert (folder / "out.onnx").read_bytes() == (folder / "in.onnx").read_bytes()


def test_no_verify(folder: Path) -> None:
    assert run("fold", "in.onnx", "out.onnx", "--no-verify", "--json", "report.json") == 0
    assert json.loads((folder / "report.json").read_text())["verification"] is None
    assert operators("out.onnx") == ["Conv"]


def test_external_data(folder: Path) -> None:
    onnx.save(model(channels=400), "big.onnx")
    assert run("fold", "big.onnx", "out.onnx", "--save-as-external-data") == 0
    weights = [
        path for path in folder.iterdir() if path.name.startswith("out.onnx") and path.name != "out.onnx"
    ]
    assert len(weights) == 1
    assert weights[0].stat().st_size >= 400 * 3 * 3 * 3 * 4 > (folder / "out.onnx").stat().st_size
    x = np.random.default_rng(1).normal(size=(2, 3, 8, 8)).astype(np.float32)
    a, b = outputs("big.onnx", x), outputs("out.onnx", x)
    assert np.abs(a - b).max() < 1e-5 * np.abs(a).max()


def test_inputs_and_shapes_of_the_check(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez("data.npz", x=np.full((3, 3, 8, 8), 0.5, np.float32))
    assert run("fold", "in.onnx", "a.onnx", "--input-data-path", "data.npz") == 0
    assert run("fold", "in.onnx", "b.onnx", "--overwrite-input-shape", "x:5,3,8,8", "--seed", "7") == 0
    assert (folder / "a.onnx").read_bytes() == (folder / "b.onnx").read_bytes()
    capsys.readouterr()
    wrong = ("--overwrite-input-shape", "nobody:1,3,8,8")
    assert "nobody" in refused(capsys, folder, 2, "fold", "in.onnx", "c.onnx", *wrong)
    wrong = ("--overwrite-input-shape", "x:1,4,8,8")  # the model says 3 channels
    assert "x" in refused(capsys, folder, 2, "fold", "in.onnx", "c.onnx", *wrong)


# -- bnfold verify


def test_verify(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(model(seed=1), "other.onnx")
    assert run("fold", "in.onnx", "out.onnx") == 0
    assert run("verify", "in.onnx", "out.onnx", "--json", "same.json") == 0
    assert run("verify", "in.onnx", "other.onnx", "--json", "differ.json") == 1
    same, differ = (json.loads((folder / name).read_text()) for name in ("same.json", "differ.json"))
    assert (same["status"], differ["status"]) == ("passed", "failed")
    assert capsys.readouterr().err == ""
    error = refused(capsys, folder, 2, "verify", "in.onnx", "missing.onnx")
    assert "missing.onnx" in error


def test_what_cannot_be_run_is_not_called_verified(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    strange = model()
    strange.graph.node.append(helper.make_node("Riddle", ["y"], ["z"], name="riddle", domain="nobody"))
    strange.opset_import.append(helper.make_opsetid("nobody", 1))
    strange.graph.output[0].name = "z"
    onnx.save(strange, "strange.onnx")
    assert run("fold", "strange.onnx", "out.onnx") == 0
    out, err = capsys.readouterr()
    assert "not run" in out
    assert err.startswith("bnfold: warning: nothing was verified: ")
    assert run("verify", "strange.onnx", "out.onnx") == 2


# -- bad usage and bad input


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "required"),
        (["melt"], "invalid choice: 'melt'"),
        (["fold"], "required: IN.onnx"),
        (["fold", "in.onnx", "out.onnx", "--no-such-flag"], "unrecognized arguments: --no-such-flag"),
        (["fold", "in.onnx", "out.onnx", "--no-ver"], "unrecognized arguments: --no-ver"),
        (["fold", "in.onnx", "out.onnx", "--check-rtol", "small"], "'small' is not a number"),
        (["fold", "in.onnx", "out.onnx", "--check-rtol", "-1"], "'-1' is not a number"),
        (["fold", "in.onnx", "out.onnx", "--check-atol", "nan"], "'nan' is not a number"),
        (["fold", "in.onnx", "out.onnx", "--overwrite-input-shape", "1,3,8,8"], "such as x:1,3,224,224"),
        (["fold", "in.onnx", "out.onnx", "--overwrite-input-shape", "x:1,-3"], "such as x:1,3,224,224"),
        (["fold", "in.onnx", "out.onnx", *["--overwrite-input-shape", "x:1"] * 2], "names one input twice"),
        (["fold", "in.onnx", "out.onnx", "--seed", "1.5"], "not a whole number"),
        (["fold", "in.onnx", "out.onnx", "--shared", "maybe"], "invalid choice: 'maybe'"),
        (["fold", "in.onnx", "--force"], "--force has nothing to do without an output file"),
        (["fold", "in.onnx", "--save-as-external-data"], "nothing to do without an output file"),
        (
            ["fold", "in.onnx", "out.onnx", "--no-verify", "--check-atol", "0"],
            "--check-atol has nothing to do",
        ),
        (["fold", "in.onnx", "out.onnx", "--no-verify", "--seed", "0"], "--seed has nothing to do"),
        (["verify", "in.onnx"], "required: B.onnx"),
        (["verify", "in.onnx", "in.onnx", "--force"], "--force has nothing to do without --json"),
    ],
)
def test_bad_usage(folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str) -> None:
    assert told in refused(capsys, folder, 2, *arguments)


@pytest.mark.parametrize("kind", ["missing", "text", "empty", "truncated", "random", "folder"])
def test_bad_input(folder: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    path = folder / "bad.onnx"
    whole = (folder / "in.onnx").read_bytes()
    data = {
        "text": b"This is not a model.\n",
        "empty": b"",
        "truncated": whole[: len(whole) // 2],
        "random": np.random.default_rng(0).bytes(5000),
    }
    if kind == "folder":
        path.mkdir()
    elif kind != "missing":
        path.write_bytes(data[kind])
    assert "bad.onnx" in refused(capsys, folder, 2, "fold", "bad.onnx", "out.onnx")
    assert "bad.onnx" in refused(capsys, folder, 2, "verify", "in.onnx", "bad.onnx")


def test_bad_input_data(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "none.npz" in refused(capsys, folder, 2, "fold", "in.onnx", "--input-data-path", "none.npz")
    (folder / "data.npz").write_text("no archive")
    assert "data.npz" in refused(capsys, folder, 2, "fold", "in.onnx", "--input-data-path", "data.npz")


def test_an_interrupt_leaves_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupt)  # the very last moment before the file would be there
    assert refused(capsys, folder, 130, "fold", "in.onnx", "out.onnx") == "bnfold: interrupted\n"


def test_a_bug_is_one_line_and_v_shows_where(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(*_: Any, **__: Any) -> None:
        raise RuntimeError("a bug\nof two lines")

    monkeypatch.setattr("bnfold.api.fold_onnx.fold_file", bug)
    assert "RuntimeError: a bug of two lines" in refused(capsys, folder, 2, "fold", "in.onnx", "out.onnx")
    assert run("fold", "in.onnx", "out.onnx", "-v") == 2
    assert "Traceback" in capsys.readouterr().err


# -- what people see


def test_names_cannot_drive_the_terminal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(model(bn_name="\x1b[31mred"), "in.onnx")
    assert run("fold", "in.onnx", "out.onnx") == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\\x1b[31mred" in out


def test_help_explains_the_reports(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fold", "in.onnx", "--json", "report.json") == 0
    report = json.loads((folder / "report.json").read_text())
    check = report["verification"]
    for command, keys in (
        ("fold", [*report, *report["entries"][0]]),
        ("verify", [*check, *check["outputs"][0]]),
    ):
        capsys.readouterr()
        assert run(command, "--help") == 0
        told = capsys.readouterr().out
        for key in keys:
            assert f'"{key}": ' in told
        assert max(len(line) for line in told.splitlines()) <= 110


def test_output_into_a_pipe_that_closes(folder: Path) -> None:
    done = subprocess.run(
        [
            "bash",
            "-c",
            f'"{sys.executable}" -m bnfold fold in.onnx out.onnx | true; echo "${{PIPESTATUS[0]}}"',
        ],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stderr == ""
    assert done.stdout.strip() in (
        "0",
        "141",
    )  # as it happens that the reader is gone before we write, or after
    assert operators("out.onnx") == ["Conv"]


class Terminal:
    """A stderr that counts as a terminal."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self.text = ""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass


@pytest.mark.parametrize(("seconds", "drawn"), [(0.0, True), (1000.0, False)])
def test_progress_waits_for_long_work(monkeypatch: pytest.MonkeyPatch, seconds: float, drawn: bool) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(bnfold.progress, "PATIENCE", seconds)
    with bnfold.progress.progress("Folding") as advance:
        advance(3, 7, "conv[red]")
    assert ("3/7" in terminal.text and "conv[red]" in terminal.text) == drawn
    assert (terminal.text == "") != drawn


def test_progress_is_quiet_in_a_pipe(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bnfold.progress, "PATIENCE", 0.0)
    with bnfold.progress.progress("Folding") as advance:
        advance(1, 2, "conv")
        advance(2, 2)
    assert capsys.readouterr() == ("", "")
