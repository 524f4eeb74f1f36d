"""A stack that is absent, or of another version, ends in one line that says which version was tested."""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path

import pytest

from bnfold.integrations import stack
from bnfold.integrations.onnxruntime import quant_pre_process
from bnfold.integrations.stack import TESTED, imported

ROOT = Path(__file__).resolve().parent.parent.parent


def absent(name: str) -> str:
    raise metadata.PackageNotFoundError(name)


def test_an_absent_stack(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime.quantization.shape_inference", None)
    monkeypatch.setattr(metadata, "version", absent)
    with pytest.raises(ImportError) as found:
        quant_pre_process("model.onnx", tmp_path / "made.onnx")
    version = TESTED["onnxruntime"]
    assert str(found.value) == (
        f"bnfold needs quant_pre_process of onnxruntime, tested with onnxruntime {version}; it is not "
        f"installed: pip install 'onnxruntime=={version}'"
    )


def test_a_version_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda _: "0.1+cpu")
    with pytest.raises(ImportError, match=rf"tested with torch {TESTED['torch']}; 0.1\+cpu is installed$"):
        imported("torch", "json", "no_such_function")
    monkeypatch.setattr(metadata, "version", lambda name: TESTED[name] + "+cpu")
    assert stack.tested("torch") == f"tested with torch {TESTED['torch']}"
    assert imported("torch", "json", "loads") is not None


def test_the_tested_versions_are_those_that_are_installed() -> None:
    """By the tools: constraints.txt for what all tests use."""
    pins = dict(re.findall(r"^([\w-]+)==([\w.]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert {name: pins[name] for name in TESTED if name in pins} == {
        name: version for name, version in TESTED.items() if name in pins
    }
    assert {"torch", "onnxruntime"} <= set(pins)
