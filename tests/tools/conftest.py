"""How the tests of the tools start one."""

from __future__ import annotations

import subprocess
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
def one_thread() -> Iterator[None]:
    """As the tools that train have it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
