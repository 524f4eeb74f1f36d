"""Every kernel, layout, type and row of the launch table against the float64 reference, run on the CPU.

The tensors go the way that they go on a device (kernel_calls.py); only the launch itself is another.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from bnfold.kernels.launch import ROWS, Device, Launch
from bnfold.nn import kernel_calls as kernels
from bnfold.nn import reference
from bnfold.nn.arguments import Arguments, Running, Saved
from tests.kernels.host import unavailable
from tests.kernels.machine import DEVICES, LITTLE, HostMachine, memory

REASON = unavailable()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")

# Of each type, half the distance between two neighbours at 1: the rounding of a result.
ROUNDING = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
TYPES = list(ROUNDING)

# Shape, and whether channels are last; by what of work.cuh it reaches.
SHAPES: dict[str, tuple[tuple[int, ...], bool]] = {
    "planes of whole vectors": ((3, 5, 16, 24), False),
    "one plane": ((1, 1, 112, 112), False),
    "large planes": ((2, 2, 112, 112), False),
    "odd planes together": ((16, 16, 7, 7), False),
    "many odd planes": ((90, 8, 7, 7), False),
    "wide odd planes": ((2, 8, 61, 65), False),
    "odd planes, odd channels": ((40, 3, 15, 17), False),
    "rows": ((70, 40), False),
    "many rows": ((1100, 24), False),
    "half a unit": ((900, 8), False),
    "rows of odd length": ((400, 7), False),
    "channels last": ((3, 24, 9, 5), True),
    "one image, channels last": ((1, 72, 31, 33), True),
    "three dimensions": ((2, 3, 4, 6, 8), False),
    "three dimensions, channels last": ((2, 16, 3, 5, 4), True),
    "a sequence": ((4, 6, 37), False),
    "points": ((9, 10, 1, 1), False),
}

# These are launched alike on all devices: one runs them.
ALIKE = {
    "planes of whole vectors",
    "rows",
    "three dimensions",
    "three dimensions, channels last",
    "a sequence",
    "points",
}


def places(*names: str) -> pytest.MarkDecorator:
    """Each shape on each device that launches it in its own way."""
    each = [(device, name) for name in names for device in (["one block"] if name in ALIKE else DEVICES)]
    return pytest.mark.parametrize(("machine", "name"), each, indirect=["machine"])


# Under sanitizers, which take long: each shape on two devices, and each device with half of the shapes.
SANITIZED = [
    (device, name)
    for number, name in enumerate(SHAPES)
    for device in (["one block"] if name in ALIKE else list(DEVICES)[number % 2 :: 2])
]


@pytest.fixture(params=DEVICES)
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> HostMachine:
    """Runs the kernels, as a device that takes another row of the launch table each."""
    stand_in = HostMachine(DEVICES[request.param])
    monkeypatch.setattr(kernels, "machine_of", lambda x: stand_in)
    return stand_in


@dataclass
class Case:
    """Arguments of all kernels."""

    x: Tensor
    residual: Tensor
    dy: Tensor
    weight: Tensor
    bias: Tensor

    @classmethod
    def drawn(
        cls,
        shape: tuple[int, ...],
        last: bool = False,
        kind: torch.dtype = torch.float32,
        parameters: torch.dtype = torch.float32,
        mean: float = 1.0,
        std: float = 2.0,
    ) -> Case:
        generator = torch.Generator().manual_seed(sum(shape))
        order = {4: torch.channels_last, 5: torch.channels_last_3d}[len(shape)] if last else None

        def draw(scale: float, offset: float) -> Tensor:
            values = (torch.randn(shape, generator=generator) * scale + offset).to(kind)
            return values if order is None else values.contiguous(memory_format=order)

        weight = (torch.rand(shape[1], generator=generator) * 2 - 0.5).to(parameters)
        bias = torch.randn(shape[1], generator=generator).to(parameters)
        return cls(draw(std, mean), draw(1, 0), draw(1, 0), weight, bias)

    def running(self, kind: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        count = self.x.shape[1]
        return torch.zeros(count, dtype=kind), torch.ones(count, dtype=kind), torch.tensor(3)

    def off(self) -> Tensor:
        """How far (x - mean) / std can be wrong because the mean is float32, for each value."""
        wide = self.x.double()
        mean, var = reference.statistics(wide)
        rounding = mean.abs() * ROUNDING[torch.float32] + 1e-7 * (var + 1e-5).sqrt()
        return reference.wide(rounding * (var + 1e-5).rsqrt(), wide)


def close(found: Tensor, wanted: Tensor, more: Tensor | float = 0) -> None:
    """Within one rounding of the result in its type, a few of float32's, and `more`."""
    wanted = wanted.double()
    room = ROUNDING[found.dtype] * 1.01 * wanted.abs() + 1e-6 * (1 + wanted.abs()) + more
    # Subnormal float16: half the distance between two of them.
    room = room + (2.0**-25 if found.dtype == torch.float16 else 0)
    excess = ((found.double() - wanted).abs() / room).max().item()
    assert excess <= 1, f"{excess:.2f} times the room"


def all_steps(case: Case, relu: bool, summed: bool) -> dict[str, Tensor]:
    """Everything that the kernels give for a case."""
    residual = case.residual if summed else None
    running = case.running(case.weight.dtype)
    given = Arguments(case.x, residual, case.weight, case.bias, 1e-5, relu)
    y, mean, invstd, mask = kernels.forward(given, Running(*running))
    saved = Saved(case.x, mask, case.weight, case.bias, mean, invstd, relu)
    dx, dresidual, dweight, dbias = kernels.backward(saved, case.dy, False, summed)
    frozen_dx, *_ = kernels.backward(saved, case.dy, True, False)
    evaluated, again = kernels.apply(given, running[0], running[1], mask is not None)
    near, m2 = kernels.statistics(case.x)
    dz, dz_x = kernels.sums(saved, case.dy)
    count = case.x.numel() // case.x.shape[1]
    spread_dx, spread_dz = kernels.apply_backward(saved, case.dy, dz / count, dz_x / count, summed)
    names = "y mean invstd mask running_mean running_var batches dx dresidual dweight dbias frozen_dx"
    names += " evaluated evaluated_mask near m2 dz dz_x spread_dx spread_dz"
    results = (y, mean, invstd, mask, *running, dx, dresidual, dweight, dbias, frozen_dx)
    results += (evaluated, again, near, m2, dz, dz_x, spread_dx, spread_dz)
    found = dict(zip(names.split(), results, strict=True))
    return {name: result for name, result in found.items() if result is not None}


def check(case: Case, relu: bool, summed: bool) -> dict[str, Tensor]:
    """All steps against the reference in float64."""
    found = all_steps(case, relu, summed)
    x, residual, dy, weight, bias = (
        each.double() for each in (case.x, case.residual, case.dy, case.weight, case.bias)
    )
    running = tuple(each.double() for each in case.running(torch.float32)[:2])
    batches = torch.tensor(3)
    added = residual if summed else None
    given = Arguments(x, added, weight, bias, 1e-5, relu)
    y, mean, invstd = reference.forward(given, Running(*running, batches))
    off, slope = case.off(), reference.wide(weight.abs(), x)
    close(found["y"], y, off * slope)
    assert found["y"].stride() == case.x.stride()
    close(found["mean"], mean)
    var = invstd**-2 - 1e-5
    count = case.x.numel() // case.x.shape[1]
    # (mean's rounding)^2, relative to the variance, and the rounding of a sum of many squares.
    room = 2e-6 + (mean.abs() * ROUNDING[torch.float32]) ** 2 / (var + 1e-5)
    close(found["invstd"], invstd, room * invstd)
    close(found["m2"], var * count, room * var * count)
    close(found["near"], mean)
    close(found["running_mean"], running[0])
    close(found["running_var"], running[1], room * running[1])
    assert found["batches"] == 4

    # From here on, what the kernel has passed is given: the sides of a ReLU differ within the rounding.
    kept = ~(found["y"] <= 0) if relu else torch.ones_like(found["y"], dtype=torch.bool)
    if "mask" in found:
        assert torch.equal(kernels.unpacked(found["mask"], case.x), kept)
        if found["mask"].numel() == kernels.mask_bytes(case.x):  # noted in whole vectors
            assert torch.equal(kernels.packed(kept, case.x), found["mask"])
    dz = torch.where(kept, dy, 0)
    dx, dweight, dbias = reference.backward(x, dz, weight, mean, invstd, False)
    total = reference.wide(dz.abs().sum([axis for axis in range(x.dim()) if axis != 1]), x)
    normal = ((x - reference.wide(mean, x)) * reference.wide(invstd, x)).abs()
    inexact = 3e-6 + 2 * off
    close(found["dbias"], dbias, 1e-6 * total.reshape(-1))
    largest = normal.amax() if normal.numel() else 0
    close(found["dweight"], dweight, (inexact * total * (1 + largest)).reshape(-1))
    steep = slope * reference.wide(invstd, x)
    room_dx = steep * (inexact * (1 + normal) * (1 + normal) * total / count + inexact * dz.abs())
    for name in ("dx", "spread_dx"):
        close(found[name], dx, room_dx)
    if summed and relu:
        assert torch.equal(found["dresidual"], dz.to(case.x.dtype))
        assert torch.equal(found["spread_dz"], dz.to(case.x.dtype))
    frozen, *_ = reference.backward(x, dz, weight, mean, invstd, True)
    close(found["frozen_dx"], frozen, steep * dz.abs() * inexact)
    close(found["dz"], dbias, 1e-6 * total.reshape(-1))
    statistics = (found["running_mean"].double(), found["running_var"].double())
    evaluated = reference.apply(given, *statistics)
    size = (x - reference.wide(statistics[0], x)).abs() * reference.wide((statistics[1] + 1e-5).rsqrt(), x)
    close(found["evaluated"], evaluated, 3e-7 * slope * size)
    return found


@pytest.mark.parametrize("kind", TYPES[:2], ids=lambda kind: str(kind)[6:])
@places(*SHAPES)
def test_values_and_gradients(machine: HostMachine, name: str, kind: torch.dtype) -> None:
    shape, last = SHAPES[name]
    case = Case.drawn(shape, last, kind)
    check(case, relu=True, summed=True)
    check(case, relu=False, summed=False)


@pytest.mark.parametrize(
    "name", ["planes of whole vectors", "many odd planes", "a sequence", "many rows", "points"]
)
@pytest.mark.parametrize("machine", ["one block, windows"], indirect=True)
def test_bfloat16(machine: HostMachine, name: str) -> None:
    """One shape for each way to read: sums, however they are exchanged, are float32."""
    case = Case.drawn(*SHAPES[name], torch.bfloat16)
    check(case, relu=True, summed=True)
    check(case, relu=False, summed=False)


@pytest.mark.parametrize("kind", TYPES[1:], ids=lambda kind: str(kind)[6:])
@places("planes of whole vectors", "odd planes together", "rows", "points")
def test_parameters_of_the_activations_type(machine: HostMachine, name: str, kind: torch.dtype) -> None:
    check(Case.drawn(*SHAPES[name], kind, parameters=kind), relu=True, summed=False)


def test_each_row_of_the_table_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    launches: dict[str, list[list[Launch]]] = {name: [] for name in SHAPES}
    for device in DEVICES.values():
        for name, (shape, last) in SHAPES.items():
            stand_in = HostMachine(device, idle=True)
            monkeypatch.setattr(kernels, "machine_of", lambda x, stand_in=stand_in: stand_in)
            all_steps(Case.drawn(shape, last), True, True)
            launches[name].append(stand_in.launches)
    assert {name for name, (first, *others) in launches.items() if others == [first] * 3} == ALIKE
    every = [launch for found in launches.values() for device in found for launch in device]
    rows, kernels_run = {launch.row for launch in every}, {launch.kernel for launch in every}
    # Rings have tests of their own.
    assert rows == {row.name for row in ROWS if "ring" not in row.exchange} | {"stream"}
    # Five ways to read, by three ways to exchange for the kernels that do.
    counted = {name: sum(f"::{name}<" in each for each in kernels_run) for name in ("forward", "apply")}
    assert counted == {"forward": 15, "apply": 5}
    assert sum("::backward<" in each for each in kernels_run) == 15
    assert sum("::apply_backward<" in each for each in kernels_run) == 5


@places("planes of whole vectors", "odd planes together", "many rows")
@pytest.mark.parametrize(("mean", "std"), [(1000.0, 0.1), (-30.0, 1e-3), (0.0, 1e-6), (3e4, 1e4)])
def test_a_mean_far_from_zero(machine: HostMachine, name: str, mean: float, std: float) -> None:
    check(Case.drawn(*SHAPES[name], mean=mean, std=std), relu=False, summed=True)


@places("planes of whole vectors", "odd planes together", "many rows")
def test_the_first_value_far_from_the_others(machine: HostMachine, name: str) -> None:
    case = Case.drawn(*SHAPES[name], mean=1000.0, std=0.1)
    case.x[0, :].flatten(1 if case.x.dim() > 2 else 0)[..., 0] = 0
    check(case, relu=False, summed=False)


@places("planes of whole vectors", "odd planes together", "many rows")
@pytest.mark.parametrize("value", [0.0, 1e4, 1234.567])
def test_constant_input_is_normalized_to_zero(machine: HostMachine, name: str, value: float) -> None:
    case = Case.drawn(*SHAPES[name])
    case.x.fill_(value)
    y, mean, invstd, _ = kernels.forward(Arguments(case.x), Running())
    assert torch.equal(y, torch.zeros_like(y))
    assert torch.equal(mean, torch.full_like(mean, value))
    close(invstd, torch.full_like(invstd, 1e-5).double().rsqrt(), 1e-4)


@places("planes of whole vectors", "odd planes together", "many rows")
def test_what_is_no_number_stays_none(machine: HostMachine, name: str) -> None:
    case = Case.drawn(*SHAPES[name])
    case.x[0, 1].fill_(torch.nan)
    case.x[0, 2].fill_(torch.inf)
    found = all_steps(case, True, True)
    for step in ("y", "dx"):
        bad = found[step][:, 1:3]
        assert bad.isnan().all()
        assert found[step][:, 3:].isfinite().all()
    assert found["mean"][1].isnan()
    assert found["running_var"][1:3].isnan().all()


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: str(kind)[6:])
@pytest.mark.parametrize("shape", [(40, 16), (3, 16, 16, 8), (8, 16, 7, 7)], ids=["rows", "planes", "odd"])
@pytest.mark.parametrize("machine", ["one block"], indirect=True)
def test_which_values_pass_a_relu(machine: HostMachine, shape: tuple[int, ...], kind: torch.dtype) -> None:
    """Those that are above 0 when they are rounded, and NaN: found again from x, and noted in a mask."""
    least = torch.nextafter(torch.zeros((), dtype=kind), torch.ones((), dtype=kind)).double()
    edges = [0.0, -0.0, 1.0, -1.0, torch.inf, -torch.inf, torch.nan, -torch.nan]
    edges += [float(least) * by for by in (0.5, -0.5, 0.75, 1.0, -1.0, 1.5, 3.0, -3.0)]
    values = torch.tensor(edges).float()
    case = Case.drawn(shape, kind=kind)
    case.weight.fill_(0)
    case.bias.copy_(values)
    every = reference.wide(values, case.x).to(kind).expand(shape).contiguous()
    kept = ~(every <= 0)
    given = Arguments(case.x, None, case.weight, case.bias, relu=True)
    y, mean, invstd, _ = kernels.forward(given, Running())
    assert torch.equal(y.nan_to_num(7), torch.where(kept, every, 0).nan_to_num(7))
    saved = Saved(case.x, None, case.weight, case.bias, mean, invstd, True)
    dx, dresidual, _, dbias = kernels.backward(saved, case.dy, True, True)
    assert dresidual is not None and torch.equal(dresidual, torch.where(kept, case.dy, 0))
    close(dbias, dresidual.double().sum([axis for axis in range(dx.dim()) if axis != 1]), 1e-3)

    residual = values[torch.randint(16, shape, generator=torch.Generator().manual_seed(0))].to(kind)
    case.bias.fill_(0)
    given = Arguments(case.x, residual, case.weight, case.bias, relu=True)
    y, mean, invstd, mask = kernels.forward(given, Running())
    kept = ~(residual <= 0)
    assert mask is not None and torch.equal(kernels.unpacked(mask, case.x), kept)
    assert torch.equal(y.nan_to_num(7), torch.where(kept, residual, 0).nan_to_num(7))
    saved = Saved(case.x, mask, case.weight, case.bias, mean, invstd, True)
    _, dresidual, _, _ = kernels.backward(saved, case.dy, False, True)
    assert dresidual is not None and torch.equal(dresidual, torch.where(kept, case.dy, 0))


def test_absent_parameters_and_statistics(machine: HostMachine) -> None:
    case = Case.drawn((5, 6, 8, 4))
    y, mean, invstd, mask = kernels.forward(Arguments(case.x, relu=True), Running())
    wanted, *_ = reference.forward(Arguments(case.x.double(), relu=True), Running())
    assert mask is None
    close(y, wanted, case.off())
    bias, *_ = kernels.forward(Arguments(case.x, bias=case.bias), Running())
    wanted, *_ = reference.forward(Arguments(case.x.double(), bias=case.bias.double()), Running())
    close(bias, wanted, case.off())
    saved = Saved(case.x, None, None, None, mean, invstd, False)
    dx, dresidual, _, _ = kernels.backward(saved, case.dy, False, True)
    wanted, *_ = reference.backward(
        case.x.double(), case.dy.double(), None, mean.double(), invstd.double(), False
    )
    assert dresidual is None
    close(dx, wanted, 1e-5)


def test_the_average_over_batches(machine: HostMachine) -> None:
    case = Case.drawn((5, 6, 8, 4))
    running = case.running(torch.float32)
    ours = tuple(each.clone() for each in running)
    kernels.forward(Arguments(case.x), Running(*ours, -1.0))
    reference.forward(Arguments(case.x.double()), Running(*running, -1.0))
    close(ours[0], running[0])
    close(ours[1], running[1], 1e-6)
    assert ours[2] == 3  # whoever calls has counted


@places("planes of whole vectors", "odd planes together", "rows", "channels last")
def test_tensors_that_are_not_aligned(machine: HostMachine, name: str) -> None:
    shape, last = SHAPES[name]
    case = Case.drawn(shape, last, torch.float16)
    wanted = all_steps(case, True, True)
    for moved in ("x", "residual", "dy"):
        value = getattr(case, moved)
        storage = torch.empty(value.numel() + 8, dtype=value.dtype)
        start = (16 - storage.data_ptr() % 16) // 2 % 8 + 1
        apart = storage[start : start + value.numel()].as_strided(value.shape, value.stride())
        assert apart.data_ptr() % 16 == 2
        apart.copy_(value)
        setattr(case, moved, apart)
        found = check(case, True, True)
        close(found["y"], wanted["y"], 1e-2)
        setattr(case, moved, value)


def bits(results: dict[str, Tensor]) -> dict[str, bytes]:
    return {
        name: b"" if (raw := memory(tensor)) is None else raw.tobytes() for name, tensor in results.items()
    }


@places("planes of whole vectors", "odd planes together", "many rows")
def test_the_same_bits_under_every_schedule(machine: HostMachine, name: str) -> None:
    case = Case.drawn(*SHAPES[name])
    wanted = bits(all_steps(case, True, True))
    for machine.seed in range(1, 7):
        assert bits(all_steps(case, True, True)) == wanted


@pytest.mark.parametrize("shape", [(90, 16, 7, 7), (1100, 48)], ids=["odd planes", "rows"])
def test_the_same_bits_of_units_in_turn(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of blocks with several units, each in several windows: some threads are a unit ahead of others."""
    few = Device((8, 0), multiprocessors=2, shared_memory=LITTLE, clusters=1, cooperative=True)
    machine = HostMachine(few)
    monkeypatch.setattr(kernels, "machine_of", lambda x: machine)
    case = Case.drawn(shape)
    wanted: list[dict[str, bytes]] = []
    for machine.seed in range(4):
        given = Arguments(case.x, None, case.weight, case.bias, relu=True)
        y, mean, invstd, _ = kernels.forward(given, Running())
        saved = Saved(case.x, None, case.weight, case.bias, mean, invstd, True)
        dx, _, dweight, dbias = kernels.backward(saved, case.dy, False, False)
        found = {"y": y, "mean": mean, "invstd": invstd, "dx": dx, "dweight": dweight, "dbias": dbias}
        wanted.append(bits(found))
        assert wanted[-1] == wanted[0], machine.seed
    assert {launch.row for launch in machine.launches} == {"cooperative grid"}
    assert all(launch.units > launch.grid // launch.ranks for launch in machine.launches)


@pytest.mark.skipif(unavailable(sanitize=True) is not None, reason=unavailable(sanitize=True) or "")
@pytest.mark.parametrize(("machine", "name"), SANITIZED, indirect=["machine"])
def test_no_access_beyond_a_tensor(machine: HostMachine, name: str) -> None:
    """Under AddressSanitizer and UndefinedBehaviorSanitizer."""
    machine.sanitize, machine.seed = True, 1
    shape, last = SHAPES[name]
    check(Case.drawn(shape, last, torch.float16 if len(name) % 2 else torch.float32), True, True)
