"""How the tests of the tools start one."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch

from tools._common import ROOT, command

Ran = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def ran() -> Ran:
    """Runs a module of the tools as a program, by its name behind `tools.`, with these arguments."""

    def run(module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(f"tools.{module}", *arguments), cwd=ROOT, capture_output=True, text=True, check=False
        )

    return run


@pytest.fixture
def ran_here(one_thread: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Ran:
    """The same in this process, which has loaded torch already."""

    def run(module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", [module, *map(str, arguments)])
        status = 0
        try:
            importlib.import_module(f"tools.{module}").main()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
        return subprocess.CompletedProcess([], status, *capfd.readouterr())

    return run


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As the tools that train have it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
