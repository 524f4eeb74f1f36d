"""Where the commands run."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from tests.cli.command import model


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with the models in.onnx (foldable) and kept.onnx (not)."""
    monkeypatch.chdir(tmp_path)
    onnx.save(model(), "in.onnx")
    onnx.save(model(relu_between=True), "kept.onnx")
    return tmp_path
