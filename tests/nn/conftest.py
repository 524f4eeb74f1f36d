"""The kernels on the CPU, and a world of one process, for the modules of `bnfold.nn`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

from bnfold.nn import functional, kernel_calls
from tests.kernels.machine import DEVICES, HostMachine


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> HostMachine:
    """A stand-in for a device, which the modules take for one that runs their kernels."""
    stand_in = HostMachine(DEVICES["cluster"])
    monkeypatch.setattr(kernel_calls, "machine_of", lambda x: stand_in)
    monkeypatch.setattr(functional, "_tried", lambda device: True)
    return stand_in


@pytest.fixture
def world_of_one(tmp_path: Path) -> Iterator[None]:
    """As torchrun --nproc_per_node=1 makes it."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    dist.destroy_process_group()
