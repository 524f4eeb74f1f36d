"""examples/ci: the steps of the workflow do what they say, and their exit statuses gate."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
import textwrap
from pathlib import Path

import onnx
import pytest

from tests.cli.command import model

ROOT = Path(__file__).resolve().parents[1]
CI = ROOT / "examples" / "ci"
STEP = re.compile(r"- name: (.*)\n +run: (?:\|\n((?: {10}.*\n)+)|(.*)\n)")
FOLD = "Fold, and check by a proof and by runs"


def steps() -> dict[str, str]:
    """The commands of the workflow, by the names of their steps."""
    found = STEP.findall((CI / "fold.yml").read_text(encoding="utf-8"))
    return {name: textwrap.dedent(block) or line for name, block, line in found}


def run(step: str, folder: Path) -> int:
    """Run a step as a runner does, with this Python and this bnfold."""
    tools = folder / "bin"
    tools.mkdir(exist_ok=True)
    for name, command in {"python": "", "bnfold": " -m bnfold"}.items():
        (tools / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{command} "$@"\n')
        (tools / name).chmod(0o755)
    path = {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    command = ["bash", "-eo", "pipefail", "-c", steps()[step]]
    return subprocess.run(command, cwd=folder, env={**os.environ, **path}, check=False).returncode


def test_what_is_exported_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(CI / "export.py"), run_name="__main__")
    install, export, *others = steps()
    assert (install, export) == ("Install", "Export")
    assert len(others) == 2
    for step in others:
        assert run(step, tmp_path) == 0, step
    assert {"folded.onnx", "report.html"} <= set(os.listdir(tmp_path))


def test_the_gate_holds_what_is_kept(tmp_path: Path) -> None:
    onnx.save(model(relu_between=True), tmp_path / "model.onnx")
    assert run(FOLD, tmp_path) == 3
    assert {"folded.onnx", "report.html", "report.json"} <= set(os.listdir(tmp_path))
