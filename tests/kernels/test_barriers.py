"""No barrier is there for nothing: without any one of them, a schedule gives other numbers or none.

Each test leaves one out, and fails if nobody notices. So one that is deleted from the sources themselves is
missed too. A copy of the sources, compiled once, asks before each barrier whether it is the one left out.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
from torch import Tensor

from bnfold.kernels.launch import Device
from bnfold.nn import kernel_calls as kernels
from bnfold.nn import reference
from bnfold.nn.arguments import Arguments, Running, Saved
from tests.kernels.host import KERNELS, HostError, unavailable
from tests.kernels.machine import DEVICES, LITTLE, HostMachine, Switched, memory, switchable
from tests.kernels.test_kernels import Case
from tests.kernels.test_ring import BACKWARD, SETTINGS

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
# Of a ring, which the others do not use.
RINGS = [
    (ring.machine().limits, (ring.rows, ring.channels))
    for kernel, name in product((SETTINGS, BACKWARD), ("two teams", "three units"))
    for ring in [kernel[name]]
]
CASES += RINGS


def barriers() -> Iterator[tuple[str, int]]:
    for path in sorted(KERNELS.glob("*.cuh")):
        for match in BARRIER.finditer(path.read_text()):
            if path.name != "port.cuh":
                yield path.name, match.start()


def line(file: str, at: int) -> int:
    return (KERNELS / file).read_text()[:at].count("\n") + 1


SITES = list(barriers())


def asking(path: Path, text: str) -> str:
    """A file with a question before each barrier."""
    for number, (file, at) in reversed([*enumerate(SITES)]):
        if file == path.name:
            text = f"{text[:at]}if (switched != {number}) {text[at:]}"
    return text


def results(file: str, number: int, machine: HostMachine, patch: pytest.MonkeyPatch) -> list[Tensor]:
    """Of the kernels that a file's barriers are for; for reduce.cuh one of two will do."""
    patch.setattr(kernels, "machine_of", lambda x: machine)
    shape = CASES[number][1]
    case = Case.drawn(shape)
    mean, var = reference.statistics(case.x)
    parameters = (case.weight, case.bias, mean)
    if file in ("forward.cuh", "forward_ring.cuh", "reduce.cuh", "ring.cuh"):
        running = case.running(case.x.dtype)
        given = Arguments(case.x, case.residual, case.weight, case.bias, 1e-5, True)
        y, *found, _ = kernels.forward(given, Running(*running))
        return [y, *found, *running]
    saved = Saved(case.x, None, *parameters, var.rsqrt(), True)
    if "backward" in file:
        found = kernels.backward(saved, case.dy, False, False)
        return [each for each in found if each is not None]
    y, _ = kernels.apply(Arguments(case.x, case.residual, *parameters[:2], 1e-5, True), mean, var, False)
    dx, _ = kernels.apply_backward(saved, case.dy, mean, var, False)
    return [y, dx]


@functools.cache
def wanted(file: str, number: int) -> list[bytes]:
    """What a case gives with all barriers."""
    with pytest.MonkeyPatch.context() as patch:
        return bits(results(file, number, HostMachine(CASES[number][0]), patch))


def bits(found: list[Tensor]) -> list[bytes]:
    return [each.tobytes() for each in map(memory, found) if each is not None]


def test_there_are_barriers() -> None:
    assert len(SITES) >= 12
    files = {"apply.cuh", "backward.cuh", "backward_ring.cuh", "forward.cuh", "forward_ring.cuh"}
    files |= {"reduce.cuh", "ring.cuh"}
    assert {file for file, _ in SITES} == files


@pytest.mark.parametrize("site", range(len(SITES)), ids=[f"{file}-{at}" for file, at in SITES])
def test_without_it_the_numbers_are_others(site: int, monkeypatch: pytest.MonkeyPatch) -> None:
    file, at = SITES[site]
    rings = range(len(CASES) - len(RINGS), len(CASES))
    numbers = rings if "ring" in file else range(rings.start)
    for number, seed in product(numbers, SEEDS):
        machine = Switched(CASES[number][0], seed, folder=switchable("barriers", asking), switched=site)
        try:
            if bits(results(file, number, machine, monkeypatch)) != wanted(file, number):
                return
        except HostError:
            return
    pytest.fail(f"nobody misses the barrier in line {line(file, at)} of {file}")
