"""Units that pass through a ring of shared memory: their values, with copies that are late and at once."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bnfold.kernels.launch import RINGS, SLOTS, THREADS, TURN, Device, Launch
from bnfold.nn import kernel_calls as kernels
from bnfold.nn import reference
from bnfold.nn.arguments import Arguments, Running, Saved
from tests.kernels.host import KERNELS, unavailable
from tests.kernels.machine import HostMachine
from tests.kernels.test_kernels import ROUNDING, Case, bits, close
from tests.kernels.test_kernels import check as check_all

REASON = unavailable()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")

LATE, AT_ONCE = 0, 4  # seeds


@dataclass(frozen=True)
class Setting:
    """A tensor (rows, channels) on a device: turns that its ring holds, and turns of a unit.

    inner: values of a plane, where it is (rows, channels, inner).
    """

    rows: int
    channels: int
    blocks: int
    ring: int
    most: int
    kind: torch.dtype = torch.float32
    kernel: str = "forward"
    inner: int = 1

    @property
    def exchange(self) -> str:
        """How a kernel's name ends. A ring does not hold a unit of more turns."""
        return f"Exchange::{'ring' if self.ring >= self.most else 'long_ring'}>"

    def machine(self, folder: Path = KERNELS) -> HostMachine:
        slots = SLOTS if self.inner == 1 else 1
        memory = RINGS[self.kernel].shared(self.ring * TURN * 16, slots, THREADS)
        return HostMachine(Device((8, 0), self.blocks, memory, clusters=1, cooperative=True), folder=folder)

    def case(self, **how: float) -> Case:
        shape = (self.rows, self.channels) if self.inner == 1 else (self.rows, self.channels, self.inner)
        return Case.drawn(shape, kind=self.kind, **how)

    def parts(self, launch: Launch) -> tuple[int, int]:
        """Turns of a unit, and of the ring."""
        if self.inner == 1:
            vectors = -(-self.rows // launch.ranks) * launch.group // launch.width
        else:
            vectors = -(-self.rows * self.inner // launch.width // launch.ranks)
        return -(-vectors // TURN), launch.window // TURN


SETTINGS = {
    "just a unit": Setting(2553, 48, 2, ring=5, most=5),
    "just a unit, no gaps": Setting(2560, 48, 2, ring=5, most=5),
    "a turn more": Setting(2553, 48, 2, ring=6, most=5),
    "three turns more": Setting(2560, 48, 2, ring=8, most=5),
    "most of a second unit": Setting(2560, 48, 2, ring=9, most=5),
    "a part of a third unit": Setting(2553, 48, 2, ring=13, most=5),
    "three units": Setting(2553, 48, 5, ring=6, most=2),
    "two teams": Setting(1500, 64, 5, ring=4, most=3),
    "a turn each": Setting(700, 96, 3, ring=1, most=1),
    "half as many channels": Setting(2553, 48, 2, ring=4, most=3),
    "many blocks": Setting(5200, 48, 21, ring=1, most=1),
    "two bytes": Setting(2600, 64, 2, ring=7, most=6, kind=torch.bfloat16),
    "two bytes, one unit": Setting(1500, 32, 2, ring=3, most=3, kind=torch.float16),
    "planes": Setting(37, 5, 2, ring=6, most=5, inner=1000),
    "planes, shorter than the threads": Setting(90, 3, 2, ring=2, most=2, kind=torch.bfloat16, inner=360),
    "planes, longer than a part": Setting(1, 7, 3, ring=3, most=2, kind=torch.float16, inner=40_000),
    # Units of which no ring holds a block's part.
    "long: a turn passes": Setting(3000, 48, 2, ring=2, most=3),
    "long: most of a unit passes": Setting(11_200, 16, 2, ring=2, most=11),
    "long: one block's ring holds all": Setting(4097, 24, 2, ring=4, most=5),
    "long: two bytes": Setting(6000, 48, 2, ring=3, most=6, kind=torch.float16),
    "long: planes": Setting(37, 3, 2, ring=2, most=5, inner=1000),
    "long: planes, two bytes": Setting(400, 2, 2, 3, most=9, kind=torch.float16, inner=360),
}
BACKWARD = {
    "just a unit": Setting(2553, 48, 2, ring=5, most=5, kernel="backward"),
    "three turns more": Setting(1536, 48, 2, ring=6, most=3, kernel="backward"),
    "three units": Setting(2553, 48, 5, ring=6, most=2, kernel="backward"),
    "two teams": Setting(1500, 64, 5, ring=4, most=3, kernel="backward"),
    "two bytes": Setting(1500, 96, 2, ring=5, most=3, kind=torch.bfloat16, kernel="backward"),
    "half as many channels": Setting(3300, 64, 2, ring=5, most=4, kind=torch.float16, kernel="backward"),
    "many blocks": Setting(5200, 48, 21, ring=1, most=1, kernel="backward"),
    "planes": Setting(37, 5, 2, ring=6, most=5, kernel="backward", inner=1000),
    "planes, two bytes": Setting(90, 3, 2, 2, most=2, kind=torch.float16, kernel="backward", inner=360),
    # Units of which no ring holds a block's part.
    "long: a turn passes": Setting(3000, 48, 2, ring=2, most=3, kernel="backward"),
    "long: most of a unit passes": Setting(11_200, 16, 2, ring=2, most=11, kernel="backward"),
    "long: a turn more than what is asked for": Setting(8192, 24, 2, ring=3, most=8, kernel="backward"),
    "long: one unit": Setting(4100, 8, 2, ring=3, most=5, kernel="backward"),
    "long: one block's ring holds all": Setting(4097, 24, 2, ring=4, most=5, kernel="backward"),
    "long: many blocks": Setting(27_000, 16, 11, ring=2, most=5, kernel="backward"),
    "long: two bytes": Setting(6000, 48, 2, ring=3, most=6, kind=torch.float16, kernel="backward"),
    "long: planes": Setting(37, 3, 2, ring=2, most=5, kernel="backward", inner=1000),
    "long: planes, two bytes": Setting(
        400, 2, 2, 3, most=9, kind=torch.float16, kernel="backward", inner=360
    ),
}
FINISHES = {
    "plain": (False, False),
    "relu": (True, False),
    "added": (False, True),
    "added, relu": (True, True),
}


@dataclass
class Found:
    """What forward gives, and the launch that gave it."""

    launch: Launch
    results: dict[str, Tensor]


def forward(machine: HostMachine, case: Case, finish: str, patch: pytest.MonkeyPatch) -> Found:
    patch.setattr(kernels, "machine_of", lambda x: machine)
    relu, summed = FINISHES[finish]
    running = case.running(case.weight.dtype)
    given = Arguments(case.x, case.residual if summed else None, case.weight, case.bias, 1e-5, relu)
    y, mean, invstd, mask = kernels.forward(given, Running(*running))
    results = {"y": y, "mean": mean, "invstd": invstd, "running_mean": running[0], "running_var": running[1]}
    if mask is not None:
        results["mask"] = mask
    return Found(machine.launches[-1], results)


def check(case: Case, finish: str, found: dict[str, Tensor]) -> None:
    """Against the reference in float64."""
    relu, summed = FINISHES[finish]
    x, residual, weight, bias = (each.double() for each in (case.x, case.residual, case.weight, case.bias))
    running = tuple(each.double() for each in case.running(torch.float32)[:2])
    given = Arguments(x, residual if summed else None, weight, bias, 1e-5, relu)
    y, mean, invstd = reference.forward(given, Running(*running, torch.tensor(3)))
    var = invstd**-2 - 1e-5
    room = 3e-6 + (mean.abs() * ROUNDING[torch.float32]) ** 2 / (var + 1e-5)
    close(found["mean"], mean, 6e-7 * var.sqrt())
    close(found["invstd"], invstd, room * invstd)
    close(found["running_mean"], running[0], 6e-7 * var.sqrt())
    close(found["running_var"], running[1], 2 * room * running[1])
    slope = reference.wide(weight.abs(), x)
    normal = (x - reference.wide(mean, x)).abs() * reference.wide(invstd, x)
    close(found["y"], y, (case.off() + 3e-6 * normal) * slope)
    if "mask" in found:
        assert torch.equal(kernels.unpacked(found["mask"], case.x), ~(found["y"] <= 0))


@pytest.mark.parametrize("name", SETTINGS)
def test_values(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = SETTINGS[name]
    case, machine = setting.case(), setting.machine()
    for number, finish in enumerate(FINISHES):
        machine.seed = (0, 5, 3, 6)[number]
        found = forward(machine, case, finish, monkeypatch)
        assert found.launch.kernel.endswith(setting.exchange)
        assert setting.parts(found.launch) == (setting.most, setting.ring)
        check(case, finish, found.results)


@pytest.mark.parametrize("name", BACKWARD)
def test_gradients(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = BACKWARD[name]
    case, machine = setting.case(), setting.machine()
    monkeypatch.setattr(kernels, "machine_of", lambda x: machine)
    for machine.seed, how in zip((0, 5, 3), ((True, True), (False, False), (True, False)), strict=True):
        check_all(case, *how)
    launches = [launch for launch in machine.launches if "::backward<" in launch.kernel]
    assert len(launches) == 9  # with the residual's gradient, frozen, and sums alone
    for launch in launches:
        assert launch.kernel.endswith(setting.exchange)
        assert setting.parts(launch) == (setting.most, setting.ring)


SOME = ("three turns more", "two teams", "two bytes", "planes")


@pytest.mark.parametrize("name", [*SOME, "long: one block's ring holds all", "long: planes"])
def test_the_same_gradients_under_every_schedule(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = BACKWARD[name]
    case, machine = setting.case(), setting.machine()
    monkeypatch.setattr(kernels, "machine_of", lambda x: machine)
    mean, var = reference.statistics(case.x.float())
    saved = Saved(case.x, None, case.weight, case.bias, mean, var.rsqrt(), True)
    found = []
    for machine.seed in range(9):
        dx, _, dweight, dbias = kernels.backward(saved, case.dy, False, False)
        found.append(bits({"dx": dx, "dweight": dweight, "dbias": dbias}))
    assert all(each == found[0] for each in found)


@pytest.mark.parametrize("name", ["three units", "long: a turn passes"])
def test_frozen_statistics_ask_nothing_of_x(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = BACKWARD[name]
    case, machine = setting.case(), setting.machine()
    monkeypatch.setattr(kernels, "machine_of", lambda x: machine)
    case.x[5, 3], case.x[6, 3] = torch.inf, torch.nan
    ones = torch.ones(setting.channels)
    dx, *_ = kernels.backward(Saved(case.x, None, case.weight, None, ones, ones, False), case.dy, True, False)
    assert torch.equal(dx, case.dy * case.weight)


@pytest.mark.parametrize(
    "name", ["a turn more", "three units", "two teams", "two bytes", "planes", "long: two bytes"]
)
def test_the_same_bits_under_every_schedule(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case, machine = SETTINGS[name].case(), SETTINGS[name].machine()
    wanted = bits(forward(machine, case, "added, relu", monkeypatch).results)
    for machine.seed in range(1, 9):
        assert bits(forward(machine, case, "added, relu", monkeypatch).results) == wanted


@pytest.mark.parametrize("name", ["a turn more", "long: most of a unit passes"])
def test_statistics_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = SETTINGS[name]
    case, machine = setting.case(), setting.machine()
    monkeypatch.setattr(kernels, "machine_of", lambda x: machine)
    mean, m2 = kernels.statistics(case.x)
    assert machine.launches[-1].kernel.endswith(setting.exchange)
    wanted, var = reference.statistics(case.x.double())
    close(mean, wanted)
    close(m2, var * setting.rows, 3e-6 * var * setting.rows)


@pytest.mark.parametrize(("name", "seed"), [*product(["a turn more", "long: planes"], [LATE, AT_ONCE])])
@pytest.mark.parametrize(("mean", "std"), [(1000.0, 0.1), (-30.0, 1e-3), (0.0, 1e-6), (3e4, 1e4)])
def test_a_mean_far_from_zero(
    mean: float, std: float, name: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = SETTINGS[name]
    case, machine = setting.case(mean=mean, std=std), setting.machine()
    machine.seed = seed
    check(case, "plain", forward(machine, case, "plain", monkeypatch).results)


@pytest.mark.parametrize("first", [0.0, 1e4, -1e5])
def test_first_values_far_from_the_others(first: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the tensor, of a block, and of each thread: its own are what sums are taken from."""
    setting = SETTINGS["a turn more"]
    rows = THREADS * 4 // 16  # that a block's threads have at one time
    for stop in (1, rows):
        case, machine = setting.case(mean=100.0, std=0.5), setting.machine()
        case.x[:stop] = first
        check(case, "plain", forward(machine, case, "plain", monkeypatch).results)


@pytest.mark.parametrize("first", [1e4, -1e5])
def test_a_thread_of_many_values_goes_on_from_their_mean(
    first: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the first one of 22, the error is 3e-6."""
    setting = SETTINGS["long: most of a unit passes"]
    case, machine = setting.case(mean=100.0, std=0.5), setting.machine()
    case.x[0] = first
    results = forward(machine, case, "plain", monkeypatch).results
    wanted = (case.x.double().var(0, unbiased=False) + 1e-5).rsqrt()
    assert (results["invstd"] / wanted - 1).abs().max() < 4e-7


@pytest.mark.parametrize("name", ["three units", "long: most of a unit passes"])
@pytest.mark.parametrize("value", [0.0, 1e4, 1234.567])
def test_constant_input_is_normalized_to_zero(
    value: float, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = SETTINGS[name]
    case, machine = setting.case(), setting.machine()
    monkeypatch.setattr(kernels, "machine_of", lambda x: machine)
    case.x.fill_(value)
    y, mean, invstd, _ = kernels.forward(Arguments(case.x), Running())
    assert torch.equal(y, torch.zeros_like(y))
    assert torch.equal(mean, torch.full_like(mean, value))
    close(invstd, torch.full_like(invstd, 1e-5).double().rsqrt(), 1e-4)


@pytest.mark.parametrize(
    ("name", "row"),
    [("a turn more", 0), ("a turn more", 2552), *product(["long: a turn passes"], (0, 900, 2999))],
)
def test_what_is_no_number_stays_in_its_channel(name: str, row: int, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = SETTINGS[name]
    case, machine = setting.case(), setting.machine()
    case.x[row, 1], case.x[row, 2], case.x[row, 3] = torch.nan, torch.inf, -torch.inf
    results = forward(machine, case, "relu", monkeypatch).results
    assert results["y"][:, 1:4].isnan().all()
    assert results["mean"][1].isnan()
    assert results["mean"][2:4].tolist() == [torch.inf, -torch.inf]
    assert results["running_var"][1:4].isnan().all()
    rest = torch.ones(48, dtype=torch.bool)
    rest[1:4] = False
    assert all(results[name][..., rest].isfinite().all() for name in results)


SANITIZER = unavailable(sanitize=True)


@pytest.mark.skipif(SANITIZER is not None, reason=SANITIZER or "")
@pytest.mark.parametrize("name", ["three units", "long: one block's ring holds all", "long: planes"])
def test_no_access_beyond_a_gradient(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = BACKWARD[name]
    case, machine = setting.case(), setting.machine()
    monkeypatch.setattr(kernels, "machine_of", lambda x: machine)
    mean, var = reference.statistics(case.x)
    mask = kernels.packed(case.residual > 0, case.x)
    saved = Saved(case.x, mask, case.weight, case.bias, mean, var.rsqrt(), True)
    wanted = kernels.backward(saved, case.dy, False, True)
    machine.sanitize, machine.seed = True, 1
    found = kernels.backward(saved, case.dy, False, True)
    assert all(torch.equal(*each) for each in zip(found, wanted, strict=True))


@pytest.mark.skipif(SANITIZER is not None, reason=SANITIZER or "")
@pytest.mark.parametrize(
    ("name", "seed"), [*product(["a turn more", "long: one block's ring holds all"], (1, 5))]
)
def test_no_access_beyond_a_tensor(name: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = SETTINGS[name]
    case, machine = setting.case(), setting.machine()
    machine.sanitize, machine.seed = True, seed
    check(case, "added, relu", forward(machine, case, "added, relu", monkeypatch).results)
