"""What machine_cuda.cpp makes of a device, on a CUDA runtime that runs nothing (runtime.cpp)."""

from __future__ import annotations

import ctypes
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.plugins.build import of_a_runtime, unavailable

REASON = unavailable()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")
WHOLE = [132, 232448, 8, 1, 66, 33, 14]  # as `runtime_limits` tells of an H200


class Runtime:
    """The runtime of a process that has asked for nothing yet."""

    def __init__(self, path: Path) -> None:
        self.opened: Any = ctypes.CDLL(str(path))
        self.opened.runtime_limits.restype = ctypes.c_char_p

    def be(
        self,
        device: int = 0,
        clusters: bool = True,
        cooperative: bool = True,
        architecture: int = 90,
        counted: bool = True,
    ) -> list[int]:
        """The limits of such a device."""
        self.opened.runtime_set(device, clusters, cooperative, architecture, counted)
        return [int(each) for each in self.opened.runtime_limits().split()]


@pytest.fixture
def runtime(tmp_path: Path) -> Runtime:
    # A copy is loaded anew, with nothing known.
    return Runtime(Path(shutil.copy(of_a_runtime(), tmp_path / "runtime.so")))


def test_all_of_it(runtime: Runtime) -> None:
    assert runtime.be() == WHOLE


def test_no_clusters(runtime: Runtime) -> None:
    assert runtime.be(clusters=False, cooperative=False) == [132, 232448, 1, 0, -1, -1, -1]


@pytest.mark.parametrize("architecture", [75, 80])
def test_code_for_an_older_architecture_has_no_clusters(runtime: Runtime, architecture: int) -> None:
    """It runs on a newer device from its PTX, and in a cluster it would give nothing."""
    assert runtime.be(architecture=architecture) == [132, 232448, 1, 1, -1, -1, -1]
    assert runtime.be(device=1, architecture=100) == WHOLE


def test_clusters_that_are_not_counted(runtime: Runtime) -> None:
    assert runtime.be(counted=False) == [132, 232448, 8, 1, -1, -1, -1]


def test_a_device_is_looked_at_once(runtime: Runtime) -> None:
    runtime.be()
    first = runtime.opened.runtime_asked()
    for _ in range(3):
        runtime.be()
    assert runtime.opened.runtime_asked() == first
    assert runtime.be(device=1, clusters=False)[2] == 1
    assert runtime.be()[2] == 8


def test_what_was_refused_is_remembered_of_its_device(runtime: Runtime) -> None:
    runtime.be()
    runtime.opened.runtime_refused(1, 1)
    assert runtime.be()[2:4] == [1, 1]
    runtime.opened.runtime_refused(8, 0)
    assert runtime.be()[2:4] == [1, 0]
    assert runtime.be(device=1) == WHOLE
