"""What a call of bnfold.nn costs the host, beside torch's batch norm, in one run.

Started by tools/host_time, which needs no GPU. The real bindings launch on a driver that runs nothing
(tests/kernels/driver.py), on tensors in the CPU's memory: so this is the host's part alone, without what
torch's allocator and streams take on a GPU. torch's own is nn.BatchNorm2d of a tiny tensor of the CPU, its
arithmetic included.

Processor time of this process, in microseconds a call: the median of rounds in which all take their turn.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import bnfold.nn
from bnfold.kernels.device import cuda_device
from bnfold.nn import functional
from bnfold.nn import kernel_calls as kernels
from tests.kernels.driver import Driver
from tests.kernels.machine import LITTLE
from tools import _common
from tools._gpu.host_table import BNFOLD, OPERATORS, PASSES, TORCH

SHAPE = (8, 32, 7, 7)  # bfloat16, channels last
TINY = (2, 8, 1, 1)
# What a device can do less than an H200, so that each line of the launch table takes this shape. All tensors
# are small, for the CPU's allocator, unlike a GPU's, takes longer for large ones.
ROWS: dict[str, dict[str, Any]] = {
    "one block": {"clusters": 1, "cooperative": False},
    "cluster": {"shared_memory": LITTLE},
    "cooperative grid": {"clusters": 1, "shared_memory": LITTLE, "multiprocessors": 8},
}
WARM_UP = 200  # calls
Call = Callable[[], Any]


class Torch:
    """torch's modules on the CPU."""

    def __init__(self, fused: bool) -> None:
        self.norm = nn.BatchNorm2d(TINY[1])
        self.x, self.residual = (torch.randn(TINY, requires_grad=True) for _ in range(2))
        self.fused, self.dy = fused, torch.randn(TINY)

    def __call__(self) -> Tensor:
        y: Tensor = self.norm(self.x)
        return torch.relu(y.add_(self.residual)) if self.fused else y


class Ours:
    """bnfold's module on a device whose driver runs nothing."""

    def __init__(self, fused: bool) -> None:
        self.norm = bnfold.nn.BatchNorm2d(SHAPE[1], activation="relu" if fused else None)
        self.x, self.residual, self.dy = (
            torch.randn(SHAPE).bfloat16().contiguous(memory_format=torch.channels_last) for _ in range(3)
        )
        self.x.requires_grad_()
        self.residual.requires_grad_()
        self.fused = fused

    def __call__(self) -> Tensor:
        y: Tensor = self.norm(self.x, self.residual) if self.fused else self.norm(self.x)
        return y


def passes(subject: Torch | Ours) -> Iterator[tuple[str, Call]]:
    """What is timed of a module, by the names of `PASSES`."""
    inputs = [subject.x, *([subject.residual] if subject.fused else []), *subject.norm.parameters()]

    def evaluate() -> None:
        subject.norm.eval()
        with torch.no_grad():
            subject()
        subject.norm.train()

    calls: tuple[Call, ...] = (
        subject,
        lambda: torch.autograd.grad(subject(), inputs, subject.dy),
        evaluate,
    )
    yield from zip(PASSES, calls, strict=True)


def operators(ours: Ours) -> Iterator[tuple[str, Call]]:
    """The operators as what torch.compile makes calls them: below autograd."""
    norm, library = ours.norm, torch.ops.bnfold
    residual = ours.residual.detach() if ours.fused else None
    x, weight, bias = (each.detach() for each in (ours.x, norm.weight, norm.bias))
    running = (norm.running_mean, norm.running_var, norm.num_batches_tracked)

    @torch.no_grad()
    def forward() -> Any:
        return library.batch_norm_train.default(
            x, residual, weight, bias, *running, 1e-5, 0.1, residual is not None
        )

    _, mean, invstd, mask = forward()

    @torch.no_grad()
    def both() -> None:
        forward()
        library.batch_norm_backward.default(
            x, ours.dy, mask, weight, bias, mean, invstd, residual is not None, False, residual is not None
        )

    yield from zip(PASSES, (forward, both), strict=False)


def subjects() -> Iterator[tuple[str, str, Any, Call]]:
    """Who is timed, in which pass, on which machine (None: torch's own), and the call."""
    device = cuda_device(0)
    for fused in (False, True):
        what = "addition and ReLU" if fused else "alone"
        yield from ((f"{TORCH}, {what}", name, None, call) for name, call in passes(Torch(fused)))
        for row, changes in ROWS.items():
            machine = dataclasses.replace(device, limits=dataclasses.replace(device.limits, **changes))
            use(machine)
            ours = Ours(fused)
            taken = kernels._found("forward", ours.x, None, torch.float32).plan.row
            assert taken == row, f"{SHAPE} takes the line {taken}, not {row}"
            for kind, calls in ((BNFOLD, passes(ours)), (OPERATORS, operators(ours))):
                yield from ((f"{kind}, {what}, {row}", name, machine, call) for name, call in calls)


def use(machine: Any) -> None:
    """Lets bnfold.nn take the CPU's tensors for those of a device."""
    kernels.machine_of = lambda x: machine
    functional._tried = lambda device: True  # type: ignore[assignment]


def timed(rounds: int, count: int) -> dict[str, dict[str, float]]:
    """Microseconds a call."""
    every = list(subjects())
    times: dict[tuple[str, str], list[float]] = {}
    for turn in range(-1, rounds):
        for name, which, machine, call in every:
            use(machine)
            calls = count if turn >= 0 else WARM_UP
            start = time.process_time()
            for _ in range(calls):
                call()
            if turn >= 0:
                times.setdefault((name, which), []).append((time.process_time() - start) / calls * 1e6)
    found: dict[str, dict[str, float]] = {}
    for (name, which), each in times.items():
        found.setdefault(name, {})[which] = round(statistics.median(each), 1)
    return found


def measured(rounds: int, count: int) -> dict[str, Any]:
    """The result, in a process that has not asked for a driver."""
    os.environ.setdefault("BNFOLD_CACHE", str(_common.ROOT / ".cache" / "cubins"))
    driver = Driver()
    driver.record(False)
    torch.set_num_threads(1)
    from cuda.bindings import driver as cuda

    cuda.cuCtxSetCurrent(cuda_device(0).context)  # as torch leaves it
    return {
        **_common.origin("torch", "cuda-core", "cuda-bindings"),
        "shape": list(SHAPE),
        "rounds": rounds,
        "calls": count,
        "us": timed(rounds, count),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="host_time", description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=15, metavar="N", help="rounds, of which the median is")
    parser.add_argument("--calls", type=int, default=300, metavar="N", help="calls of each in a round")
    default = _common.RESULTS / "host_time.json"
    parser.add_argument("--output", type=Path, default=default, metavar="FILE", help="where the result goes")
    arguments = parser.parse_args()
    with _common.ending("host_time"):
        result = measured(arguments.rounds, arguments.calls)
        for name, row in result["us"].items():
            print(f"{name:48}", *(f"{row.get(which, 0):8.1f}" for which in PASSES))
        _common.write(arguments.output, result)
        print(f"written to {_common.shown(arguments.output)}")


if __name__ == "__main__":
    main()
