"""No barrier is there for nothing: without any one of them, a schedule gives other numbers or none.

Each test deletes one from a copy of the sources, and fails if nobody notices. So one that is deleted from the
sources themselves is missed too.
"""

from __future__ import annotations

import functools
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import Tensor

from bnfold.kernels.launch import Device
from bnfold.nn import kernel_calls as kernels
from bnfold.nn import reference
from bnfold.nn.arguments import Arguments, Running, Saved
from tests.kernels.host import KERNELS, HostError, unavailable
from tests.kernels.machine import DEVICES, LITTLE, HostMachine, memory
from tests.kernels.test_kernels import Case

REASON = unavailable()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")

BARRIER = re.compile(r"port::sync_(block|cluster)\(\);")
SEEDS = range(24)
FEW = Device((8, 0), multiprocessors=2, shared_memory=LITTLE, clusters=1, cooperative=True)
# Several units for each block, several windows, each way to exchange and to read.
CASES = [
    (DEVICES["one block, windows"], (9, 4, 16, 40)),
    (DEVICES["one block, windows"], (40, 16, 7, 7)),
    (DEVICES["cluster"], (400, 24)),
    (DEVICES["cooperative grid"], (1100, 24)),
    (FEW, (90, 16, 7, 7)),
    (DEVICES["cluster"], (40, 16, 7, 7)),
]


def barriers() -> Iterator[tuple[str, int]]:
    for path in sorted(KERNELS.glob("*.cuh")):
        for match in BARRIER.finditer(path.read_text()):
            if path.name != "port.cuh":
                yield path.name, match.start()


def line(file: str, at: int) -> int:
    return (KERNELS / file).read_text()[:at].count("\n") + 1


SITES = list(barriers())


def results(file: str, number: int, patch: pytest.MonkeyPatch, folder: Path, seed: int) -> list[Tensor]:
    """Of the kernels that a file's barriers are for; for reduce.cuh one of two will do."""
    device, shape = CASES[number]
    machine = HostMachine(device, seed=seed, folder=folder)
    patch.setattr(kernels, "machine_of", lambda x: machine)
    case = Case.drawn(shape)
    mean, var = reference.statistics(case.x)
    parameters = (case.weight, case.bias, mean)
    if file in ("forward.cuh", "reduce.cuh"):
        running = case.running(case.x.dtype)
        given = Arguments(case.x, case.residual, case.weight, case.bias, 1e-5, True)
        y, *found, _ = kernels.forward(given, Running(*running))
        return [y, *found, *running]
    saved = Saved(case.x, None, *parameters, var.rsqrt(), True)
    if file == "backward.cuh":
        found = kernels.backward(saved, case.dy, False, False)
        return [each for each in found if each is not None]
    y, _ = kernels.apply(Arguments(case.x, case.residual, *parameters[:2], 1e-5, True), mean, var, False)
    dx, _ = kernels.apply_backward(saved, case.dy, mean, var, False)
    return [y, dx]


@functools.cache
def wanted(file: str, number: int) -> list[bytes]:
    """What a case gives with all barriers."""
    with pytest.MonkeyPatch.context() as patch:
        return bits(results(file, number, patch, KERNELS, 0))


def bits(found: list[Tensor]) -> list[bytes]:
    return [each.tobytes() for each in map(memory, found) if each is not None]


def test_there_are_barriers() -> None:
    assert len(SITES) >= 12
    assert {file for file, _ in SITES} == {"apply.cuh", "backward.cuh", "forward.cuh", "reduce.cuh"}


@pytest.mark.parametrize(("file", "at"), SITES, ids=lambda value: str(value))
def test_without_it_the_numbers_are_others(
    file: str, at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in KERNELS.glob("*.cuh"):
        shutil.copy(path, tmp_path)
    text = (KERNELS / file).read_text()
    deleted = BARRIER.sub("{}", text[at:], count=1)
    (tmp_path / file).write_text(text[:at] + deleted)
    for number in range(len(CASES)):
        for seed in SEEDS:
            try:
                found = bits(results(file, number, monkeypatch, tmp_path, seed))
                if found != wanted(file, number):
                    return
            except HostError:
                return
    pytest.fail(f"nobody misses the barrier in line {line(file, at)} of {file}")
