"""The command line as a whole: errors, exit statuses, and what people see."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.cli.command import model, operators, refused, run


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

    monkeypatch.setattr("bnfold.api.fold_onnx.fold_loaded", bug)
    assert "RuntimeError: a bug of two lines" in refused(capsys, folder, 2, "fold", "in.onnx", "out.onnx")
    assert run("fold", "in.onnx", "out.onnx", "-v") == 2
    assert "Traceback" in capsys.readouterr().err


def test_names_cannot_drive_the_terminal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(model(bn_name="\x1b[31mred"), "in.onnx")
    assert run("fold", "in.onnx", "out.onnx") == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\\x1b[31mred" in out


def test_help_explains_the_reports(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fold", "in.onnx", "--check", "both", "--json", "report.json") == 0
    report = json.loads((folder / "report.json").read_text())
    check = report["verification"]
    for command, keys in (
        ("fold", [*report, *report["entries"][0], *report["summary"], *report["summary"]["before"]]),
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
