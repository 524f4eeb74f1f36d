"""Mean and squared deviations in one sweep: how exact they are, and what becomes of infinities and NaN."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bnfold.kernels.launch import Device
from bnfold.nn import kernel_calls as kernels
from bnfold.nn.arguments import Arguments, Running
from tests.kernels.host import unavailable
from tests.kernels.machine import DEVICES, HostMachine

REASON = unavailable()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")

Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
ROUNDING = 2.0**-24  # float32's
GRID = Device((9, 0), multiprocessors=6, shared_memory=227 * 1024, clusters=1, cooperative=True)


def hard_cases(size: int, firsts: int) -> dict[str, Array]:
    """Values of a channel, in order of memory; `firsts` of them are the threads' first ones."""
    draw = np.random.default_rng(0)
    normal, begin = draw.standard_normal(size), np.arange(size) < firsts
    return {
        "normal": normal,
        "a mean of 1e3": normal + 1e3,
        "a mean of 1e5": normal + 1e5,
        "1e4 first": np.where(np.arange(size) == 0, 1e4, normal),
        "1e4 last": np.where(np.arange(size) == size - 1, 1e4, normal),
        "each thread's first one 100 times as large": np.where(begin, 100, 1) * normal,
        "a step behind each thread's first one": np.where(begin, 1e3, 0) + normal,
        "few above 0": np.maximum(normal - 2, 0),
        "constant": np.full(size, 3.3),
        "0 but for the first": np.where(np.arange(size) == 0, 7.0, 0.0),
    }


@pytest.mark.parametrize("device", [DEVICES["one block"], GRID], ids=["one block", "cooperative grid"])
@pytest.mark.parametrize("layout", ["rows", "planes of whole vectors", "odd planes"])
def test_one_sweep_is_exact(device: Device, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within what rounding can do at most.

    With u = 2^-24, and n values of a channel a thread, whose deviations d are from the first one: sum(d) is
    wrong by at most n u sum|d|, and sum(d^2) by n u sum(d^2), so sum(d^2) - sum(d)^2 / n by 3 n u sum(d^2),
    for sum(d)^2 <= n sum(d^2). And sum(d^2) is at most n times the squared deviations, if the first value
    alone differs; else about twice them. The means of threads that are merged cost a few u more.
    """
    machine = HostMachine(device)
    monkeypatch.setattr(kernels, "machine_of", lambda x: machine)
    shape, n, firsts = {
        "rows": ((2560, 32), 20, 128),
        "planes of whole vectors": ((2, 32, 64, 72), 20, 2048),
        "odd planes": ((24, 32, 15, 17), 16, 512),
    }[layout]
    size = int(np.prod(shape)) // 32
    cases = hard_cases(size, firsts)
    x = torch.zeros((32, size))
    for channel, values in enumerate(cases.values()):
        x[channel] = torch.from_numpy(values)
    x = x.reshape(32, shape[0], -1).transpose(0, 1).reshape(shape).contiguous()
    mean, m2 = kernels.statistics(x)
    wide = x.double().transpose(0, 1).reshape(32, -1)
    for channel, name in enumerate(cases):
        wanted = wide[channel].mean().item()
        squares = (wide[channel] - wanted).square().sum().item()
        room = (3 * n * (n if any(word in name for word in ("first", "step")) else 2) + 16) * ROUNDING
        assert abs(m2[channel].item() - squares) <= room * squares, name
        std = (squares / size) ** 0.5
        assert abs(mean[channel].item() - wanted) <= ROUNDING * abs(wanted) + room * std, name
    assert m2[list(cases).index("constant")] == 0


@pytest.mark.parametrize("machine", DEVICES)
@pytest.mark.parametrize("layout", ["rows", "planes of whole vectors", "odd planes"])
def test_the_mean_of_infinities(machine: str, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch's, of the sum: infinite, or NaN if there are infinities of both signs, or a NaN."""
    stand_in = HostMachine(DEVICES[machine])
    monkeypatch.setattr(kernels, "machine_of", lambda x: stand_in)
    shapes = {"rows": (1100, 8), "planes of whole vectors": (9, 8, 16, 16), "odd planes": (40, 8, 7, 7)}
    shape = shapes[layout]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    flat = x.transpose(0, 1).reshape(8, -1)
    inf = torch.inf
    odd = [{0: inf}, {-1: -inf}, {0: inf, 7: -inf}, {3: torch.nan}, {0: torch.nan, 1: inf}]
    odd += [dict.fromkeys(range(3), inf), dict.fromkeys(range(600), -inf)]
    for channel, values in enumerate(odd):
        for place, value in values.items():
            flat[channel, place] = value
    x = flat.reshape(8, shape[0], -1).transpose(0, 1).reshape(shape).contiguous()
    y, mean, invstd, _ = kernels.forward(Arguments(x), Running())
    wanted = x.transpose(0, 1).reshape(8, -1).mean(1)
    assert torch.equal(mean.isnan(), wanted.isnan())
    assert torch.equal(mean.isinf(), wanted.isinf())
    assert torch.allclose(mean, wanted, atol=1e-6, equal_nan=True)
    assert invstd[:-1].isnan().all()
    assert y[:, :-1].isnan().all()
    assert y[:, -1].isfinite().all()
