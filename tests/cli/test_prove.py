"""`bnfold prove`: its statuses, its JSON, its help."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from tests.cli.command import model, refused, run


def test_prove(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(model(seed=1), "other.onnx")
    assert run("fold", "in.onnx", "out.onnx", "--no-verify") == 0
    capsys.readouterr()
    assert run("prove", "in.onnx", "out.onnx", "--json", "same.json") == 0
    out, err = capsys.readouterr()
    assert (out.count("\n"), err) == (1, "")
    assert out.startswith("proved: ")
    assert run("prove", "in.onnx", "other.onnx", "--json", "differ.json") == 1
    same, differ = (json.loads((folder / name).read_text()) for name in ("same.json", "differ.json"))
    assert (same["status"], differ["status"]) == ("proved", "refuted")
    assert differ["begins"]["node"] == "conv"
    capsys.readouterr()
    assert run("prove", "--help") == 0
    told = capsys.readouterr().out
    assert all(f'"{key}": ' in told for key in [*same, *differ["refusal"]])
    assert "missing.onnx" in refused(capsys, folder, 2, "prove", "in.onnx", "missing.onnx")


def test_what_cannot_be_told_has_a_status_of_its_own(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, op in (("a", "Riddle"), ("b", "Enigma")):
        strange = model()
        strange.graph.node.append(onnx.helper.make_node(op, ["y"], ["z"], name="riddle", domain="nobody"))
        strange.opset_import.append(onnx.helper.make_opsetid("nobody", 1))
        strange.graph.output[0].name = "z"
        onnx.save(strange, f"{name}.onnx")
    assert run("prove", "a.onnx", "a.onnx") == 0
    assert run("prove", "a.onnx", "b.onnx") == 3
    assert capsys.readouterr().out.splitlines()[1].startswith("undecided: riddle: z: ")


def test_a_certificate(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fold", "in.onnx", "out.onnx", "--certificate", "c.npz") == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("wrote c.npz (")
    assert run("prove", "in.onnx", "out.onnx", "--certificate", "c.npz", "--json", "proof.json") == 0
    claims = json.loads((folder / "proof.json").read_text())["claims"]
    assert (claims["weights"], claims["channels"], claims["evaluated"]) == (1, 1, 0)
    capsys.readouterr()
    onnx.save(model(seed=1), "other.onnx")
    for pair, which in ((("other.onnx", "out.onnx"), "first"), (("in.onnx", "other.onnx"), "second")):
        told = refused(capsys, folder, 2, "prove", *pair, "--certificate", "c.npz")
        assert f"the certificate is of another fold: the {which} model is another" in told
    told = refused(capsys, folder, 2, "prove", "in.onnx", "out.onnx", "--certificate", "in.onnx")
    assert "in.onnx: not a certificate of bnfold" in told
    told = refused(capsys, folder, 2, "fold", "in.onnx", "new.onnx", "--certificate", "c.npz")
    assert "c.npz" in told
    told = refused(capsys, folder, 2, "fold", "in.onnx", "--certificate", "new.npz")
    assert "--certificate" in told


def test_a_certificate_holds_for_what_it_proves_in_another_file(folder: Path) -> None:
    assert run("fold", "in.onnx", "out.onnx", "--certificate", "c.npz") == 0
    assert run("fold", "in.onnx", "apart.onnx", "--save-as-external-data") == 0
    assert run("prove", "in.onnx", "apart.onnx", "--certificate", "c.npz") == 0
    renamed = onnx.load("out.onnx")
    renamed.producer_name = "another"
    onnx.save(renamed, "renamed.onnx")
    assert run("prove", "in.onnx", "renamed.onnx", "--certificate", "c.npz") == 0


def test_a_fold_that_is_checked_by_a_proof(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fold", "in.onnx", "a.onnx", "--check", "proof", "--json", "a.json") == 0
    assert "verification by proof: proved: " in capsys.readouterr().out
    assert json.loads((folder / "a.json").read_text())["verification"]["proof"]["status"] == "proved"
    assert run("fold", "in.onnx", "b.onnx", "--check", "none") == 0
    assert "verification" not in capsys.readouterr().out
    told = refused(capsys, folder, 2, "fold", "in.onnx", "c.onnx", "--check", "proof", "--no-verify")
    assert "--check" in told
    told = refused(capsys, folder, 2, "fold", "in.onnx", "c.onnx", "--check", "none", "--seed", "3")
    assert "--seed" in told
