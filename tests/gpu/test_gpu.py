"""The kernels on a GPU against the float64 reference: shapes, types, and every row of the launch table."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bnfold.nn import kernel_calls as kernels
from bnfold.nn import reference
from bnfold.nn.arguments import Arguments, Running, Saved
from tests.gpu.device import CUDA, LIMITS, MARKS, TYPES, Case, excess, limited, ordered

pytestmark = MARKS
EPS, MOMENTUM = 1e-5, 0.1

# Shape, and whether channels are last.
SHAPES: dict[str, tuple[tuple[int, ...], bool]] = {
    "planes of whole vectors": ((8, 48, 16, 24), False),
    "large planes": ((2, 3, 112, 112), False),
    "one plane": ((1, 1, 112, 112), False),
    "planes for two blocks": ((16, 64, 56, 56), False),
    "odd planes": ((64, 64, 7, 7), False),
    "odd planes, odd channels": ((4, 3, 5, 7), False),
    "rows": ((512, 264), False),
    "rows of odd length": ((33, 7), False),
    "channels last": ((16, 72, 28, 28), True),
    "many channels last": ((64, 512, 14, 14), True),
    "large, channels last": ((64, 64, 56, 56), True),
    "odd channels last": ((5, 7, 9, 9), True),
    "three dimensions": ((2, 3, 4, 6, 8), False),
    "three dimensions, channels last": ((2, 16, 3, 5, 4), True),
    "a sequence": ((4, 6, 37), False),
    "points": ((9, 10, 1, 1), False),
}


def forward(case: Case, relu: bool, summed: bool) -> tuple[dict[str, Tensor], Tensor | None]:
    """What it gives and changes, and the mask."""
    count = case.x.shape[1]
    running = (torch.zeros(count, device=CUDA), torch.ones(count, device=CUDA))
    batches = torch.tensor(3, device=CUDA)
    given = Arguments(case.x, case.residual if summed else None, case.weight, case.bias, EPS, relu)
    y, mean, invstd, mask = kernels.forward(given, Running(*running, batches, MOMENTUM))
    assert batches.item() == 4
    found = {"y": y, "mean": mean, "invstd": invstd, "running_mean": running[0], "running_var": running[1]}
    return found, mask


def check(case: Case, relu: bool, summed: bool) -> dict[str, Tensor]:
    """Forward, backward and evaluation; gives everything that came out."""
    found, mask = forward(case, relu, summed)
    x, weight, bias = case.x.double(), case.weight.double(), case.bias.double()
    residual = case.residual.double() if summed else None
    running = (torch.zeros_like(weight), torch.ones_like(weight))
    given = Arguments(x, residual, weight, bias, EPS, relu)
    y, mean, invstd = reference.forward(given, Running(*running, None, MOMENTUM))
    wanted = {"y": y, "mean": mean, "invstd": invstd, "running_mean": running[0], "running_var": running[1]}

    saved = Saved(case.x, mask, case.weight, case.bias, found["mean"], found["invstd"], relu)
    dx, dresidual, dweight, dbias = kernels.backward(saved, case.dy, False, summed)
    frozen_dx, *_ = kernels.backward(saved, case.dy, True, False)
    assert (dresidual is None) == (not (relu and summed))
    # The side of the ReLU is that of the y that was given.
    dz = torch.where(found["y"] > 0, case.dy, 0).double() if relu else case.dy.double()
    wanted["dx"], wanted["dweight"], wanted["dbias"] = reference.backward(x, dz, weight, mean, invstd, False)
    wanted["frozen_dx"], *_ = reference.backward(x, dz, weight, mean, invstd, True)
    found.update({"dx": dx, "frozen_dx": frozen_dx, "dweight": dweight, "dbias": dbias})
    if dresidual is not None:
        found["dresidual"], wanted["dresidual"] = dresidual, dz

    statistics = (found["running_mean"], found["running_var"])
    read = Arguments(case.x, case.residual if summed else None, case.weight, case.bias, EPS, relu)
    evaluated, _ = kernels.apply(read, *statistics, False)
    wide = [each.double() for each in statistics]
    found["eval"] = evaluated
    wanted["eval"] = reference.apply(given, *wide)

    count = case.x.numel() // case.x.shape[1]
    for key, value in wanted.items():
        more = 1e-7 * count + 1e-5 if key in ("dweight", "dbias") else 0.0
        part = excess(found[key], value, more)
        assert part <= 1, f"{key}: {part:.2f} times the room"
    return found


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("kind", TYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_values(shape: str, kind: torch.dtype, limits: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device = limited(monkeypatch, LIMITS[limits])
    case = Case.drawn(*SHAPES[shape], kind)
    for relu, summed in ((False, False), (True, False), (True, True)):
        found = check(case, relu, summed)
        again = check(case, relu, summed)
        assert all(torch.equal(found[key], again[key]) for key in found), "not the same bits again"
    assert {"forward", "backward", "apply"} <= {launch.source[:-4] for launch in device.launches}


def test_every_row_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {"one block", "one block, windows", "stream"}
    seen: set[str] = set()
    for changes in LIMITS.values():
        with monkeypatch.context() as here:
            device = limited(here, changes)
            for shape in ("planes of whole vectors", "large planes", "channels last"):
                check(Case.drawn(*SHAPES[shape], torch.float16), True, True)
            seen |= device.rows()
            if device.limits.clusters > 1:
                wanted.add("cluster")
    together = {"cooperative grid", "ring", "long ring"}  # which of them depends on the device
    assert seen - together == wanted
    assert seen & together


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_memory_that_is_not_aligned(kind: torch.dtype, last: bool) -> None:
    case = Case.drawn((6, 24, 9, 8), last, kind)

    def moved(x: Tensor) -> Tensor:
        """The same numbers, one value further on in memory than a vector begins."""
        memory = torch.empty(x.numel() + 1, dtype=kind, device=CUDA)[1:]
        return memory.as_strided(x.shape, x.stride()).copy_(x)

    off = Case(moved(case.x), moved(case.residual), moved(case.dy), case.weight, case.bias)
    assert off.x.data_ptr() % 16
    for relu, summed in ((False, False), (True, True)):
        check(off, relu, summed)
        mixed = Case(case.x, case.residual, off.dy, case.weight, case.bias)
        check(mixed, relu, summed)


@pytest.mark.parametrize("last", [False, True])
def test_parameters_of_the_same_type(last: bool) -> None:
    for kind in TYPES[1:]:
        case = Case.drawn((8, 16, 7, 7), last, kind)
        wide = forward(case, True, True)[0]
        case.weight, case.bias = case.weight.to(kind), case.bias.to(kind)
        narrow = Case(case.x, case.residual, case.dy, case.weight.float(), case.bias.float())
        running = (torch.zeros(16, dtype=kind, device=CUDA), torch.ones(16, dtype=kind, device=CUDA))
        given = Arguments(case.x, case.residual, case.weight, case.bias, EPS, True)
        y, *_ = kernels.forward(given, Running(*running, None, MOMENTUM))
        assert torch.equal(y, forward(narrow, True, True)[0]["y"])
        assert torch.allclose(running[0].float(), wide["running_mean"], atol=1e-2)


@pytest.mark.parametrize(("mean", "std"), [(1000.0, 0.1), (0.0, 1e-3), (-1e4, 1.0)])
@pytest.mark.parametrize("shape", ["large planes", "channels last", "odd planes"])
def test_a_mean_far_from_zero(shape: str, mean: float, std: float) -> None:
    case = Case.drawn(*SHAPES[shape], torch.float32, mean, std)
    found, _ = forward(case, False, False)
    wide = case.x.double()
    batch_mean, var = reference.statistics(wide)
    assert torch.allclose(found["mean"].double(), batch_mean, rtol=2e-7, atol=1e-7)
    assert torch.allclose(found["invstd"].double(), (var + EPS).rsqrt(), rtol=1e-4)


@pytest.mark.parametrize("last", [False, True])
def test_constant_input_gives_the_bias(last: bool) -> None:
    case = Case.drawn((8, 16, 14, 14), last)
    case.x.fill_(1e4)
    found, _ = forward(case, False, False)
    assert torch.equal(found["y"], case.bias.view(1, -1, 1, 1).expand_as(found["y"]))


@pytest.mark.parametrize("last", [False, True])
def test_nan_stays_in_its_channel(last: bool) -> None:
    case = Case.drawn((8, 16, 14, 14), last, torch.bfloat16)
    case.x[3, 5, 7, 2] = torch.nan
    found, _ = forward(case, True, True)
    others = [channel for channel in range(16) if channel != 5]
    assert found["y"][:, 5].isnan().all()
    assert found["y"][:, others].isfinite().all()


@pytest.mark.parametrize("last", [False, True])
def test_more_than_two_to_the_31_values(last: bool) -> None:
    shape = (33, 64, 1024, 1024)  # 2.2e9
    needed = 6 * 2 * 33 * 2**26
    free = torch.cuda.mem_get_info()[0]
    if free < needed:
        pytest.skip(f"{needed / 2**30:.0f} GiB are needed, {free / 2**30:.0f} are free")
    order: Any = torch.channels_last if last else torch.contiguous_format
    generator = torch.Generator(CUDA).manual_seed(0)
    x, dy = (
        torch.empty(shape, dtype=torch.float16, device=CUDA, memory_format=order).normal_(generator=generator)
        for _ in range(2)
    )
    weight, bias = torch.linspace(0.5, 1.5, 64, device=CUDA), torch.linspace(-1, 1, 64, device=CUDA)
    y, mean, invstd, _ = kernels.forward(Arguments(x, None, weight, bias, EPS, True), Running())
    saved = Saved(x, None, weight, bias, mean, invstd, True)
    dx, _, dweight, dbias = kernels.backward(saved, dy, False, False)
    for channel in (0, 31, 63):
        one = slice(channel, channel + 1)
        wide = ordered(x[:, one], False).double()
        given = Arguments(wide, None, weight[one].double(), bias[one].double(), EPS, True)
        wanted, batch_mean, inverse = reference.forward(given, Running())
        assert excess(y[:, one], wanted) <= 1
        dz = torch.where(y[:, one] > 0, dy[:, one], 0).double()
        wanted, of_weight, of_bias = reference.backward(
            wide, dz, weight[one].double(), batch_mean, inverse, False
        )
        assert excess(dx[:, one], wanted) <= 1
        assert torch.allclose(dweight[one].double(), of_weight, rtol=1e-3, atol=10)
        assert torch.allclose(dbias[one].double(), of_bias, rtol=1e-3, atol=10)
        del wide, wanted, dz
