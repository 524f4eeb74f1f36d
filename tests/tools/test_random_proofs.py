"""tools/random_proofs: what is counted, and that a run goes on where it stopped."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bnfold.errors import ModelError
from tools._common import read
from tools._zoo import random_proofs


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    path = tmp_path / "random_proofs.json"
    monkeypatch.setattr(random_proofs, "RESULT", path)
    monkeypatch.setattr(random_proofs, "BLOCK", 4)
    monkeypatch.setattr(sys, "argv", ["random_proofs", "--first", "62007040", "--graphs", "8", "--jobs", "1"])
    return path


def test_every_seed_is_counted(small: Path) -> None:
    random_proofs.main()
    found = read(small)
    assert found["count"] == {"graphs": 8, "proved": 8, "proved, bare": 2}
    assert list(found["blocks"]) == ["62007040", "62007044"]


def test_a_run_goes_on_where_it_stopped(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random_proofs.main()
    capsys.readouterr()
    random_proofs.main()
    assert capsys.readouterr().out.startswith("wrote ")


def test_what_is_refused_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise ModelError("no")

    monkeypatch.setattr(random_proofs.bnfold, "fold_onnx", refuse)
    monkeypatch.setattr(random_proofs, "BLOCK", 1)
    found = random_proofs.block(3)
    assert found["count"] == {"refused": 1}
    assert found["others"] == [{"seed": 3, "outcome": "refused", "said": "no"}]
