"""`bnfold fold --html`: the page is written, whole or not at all, and never over a file of this run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.command import contents, refused, run
from tests.report.html.test_page import data


def test_the_page_has_the_report(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fold", "in.onnx", "out.onnx", "--json", "report.json", "--html", "report.html") == 0
    assert "wrote report.html (" in capsys.readouterr().out
    found = data((folder / "report.html").read_text())
    assert found["report"] == json.loads((folder / "report.json").read_text())
    assert found["title"] == "in.onnx"
    before, after = ([op for _, op, *_ in graph["nodes"]] for graph in found["graphs"])
    assert before == ["input", "Conv", "BatchNormalization", "output"]
    assert after == ["input", "Conv", "output"]


def test_it_needs_no_output(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more in ([], ["--force"]):
        assert run("fold", "kept.onnx", "--html", "report.html", *more) == 0
    assert sorted(contents(folder)) == ["in.onnx", "kept.onnx", "report.html"]
    capsys.readouterr()
    assert "report.html" in refused(capsys, folder, 2, "fold", "kept.onnx", "--html", "report.html")


@pytest.mark.parametrize("other", ["in.onnx", "out.onnx", "report.json", "c.npz"])
def test_it_is_no_other_file_of_this_run(
    folder: Path, capsys: pytest.CaptureFixture[str], other: str
) -> None:
    files = ["out.onnx", "--json", "report.json", "--certificate", "c.npz"]
    told = refused(capsys, folder, 2, "fold", "in.onnx", *files, "--html", other, "--force")
    assert "has two uses in this command" in told


def test_beside_json_on_the_standard_output(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fold", "kept.onnx", "--html", "report.html", "--json", "-") == 0
    out, err = capsys.readouterr()
    assert data((folder / "report.html").read_text())["report"] == json.loads(out)
    assert "wrote report.html (" in err
