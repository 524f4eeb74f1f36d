"""The kernels on the CPU, for the modules of `bnfold.nn`."""

from __future__ import annotations

import pytest

from bnfold.nn import functional, kernel_calls
from tests.kernels.machine import DEVICES, HostMachine


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> HostMachine:
    """A stand-in for a device, which the modules take for one that runs their kernels."""
    stand_in = HostMachine(DEVICES["cluster"])
    monkeypatch.setattr(kernel_calls, "machine_of", lambda x: stand_in)
    monkeypatch.setattr(functional, "_tried", lambda device: True)
    return stand_in
