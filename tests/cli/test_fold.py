"""`bnfold fold`: what it writes, what it refuses, and with which exit status."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.cli.command import contents, model, operators, outputs, refused, run
from tests.onnx_graph.build import Build


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


def test_for_a_quantizer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    g = Build(seed=1)
    x = g.op("Sigmoid", g.input("x", (1, 48, 6, 6)))
    g.output(g.op("Relu", g.op("Add", g.conv(x, 48, 3, pads=1, name="wide"), x)))
    onnx.save(g.model(), folder / "block.onnx")
    assert run("fold", "block.onnx", "full.onnx") == 0
    assert "note: int8 with one scale a weight: 1 of these merges would add more" in capsys.readouterr().out
    assert run("fold", "block.onnx", "free.onnx", "--for", "int8", "--json", "report.json") == 0
    assert "stay apart for int8: as one node, rounding would add " in capsys.readouterr().out
    assert [operators(path) for path in ("full.onnx", "free.onnx")] == [
        ["Sigmoid", "Conv", "Relu"],
        ["Sigmoid", "Conv", "Add", "Relu"],
    ]
    report = json.loads((folder / "report.json").read_text())
    assert report["quantize_for"] == "int8"
    (apart,) = report["apart"]
    assert apart["noise"]["target"] == "int8"
    assert apart["noise"]["merged_db"] > apart["noise"]["apart_db"] + 0.5


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
