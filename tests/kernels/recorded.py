"""Launches by the real cuda-core on the recording driver, told as JSON; test_driver.py judges.

Tensors are in the CPU's memory: the driver reads none of them.
"""

from __future__ import annotations

import dataclasses
import json
import os
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bnfold.kernels.compile import compiled
from bnfold.kernels.device import CudaDevice, cuda_device
from bnfold.kernels.launch import Device, Launch
from bnfold.nn import kernel_calls as kernels
from bnfold.nn.arguments import Arguments, Running, Saved
from tests.kernels.driver import Driver
from tests.kernels.machine import LITTLE

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "cubins"
# What a device can do less than the H200, by the row of the launch table that it then takes, and a shape.
SMALL, LARGE = (3, 16, 4, 5), (32, 64, 14, 14)
ROWS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "one block": ({}, SMALL),
    "cluster": ({}, (8, 512, 14, 14)),
    "ring": ({"clusters": 1}, (32, 128, 14, 14)),
    "long ring": ({"clusters": 1, "multiprocessors": 2, "shared_memory": 80 * 1024}, LARGE),
    "cooperative grid": ({"clusters": 1}, (32, 72, 14, 14)),
    "one block, windows": ({"clusters": 1, "cooperative": False, "shared_memory": LITTLE}, LARGE),
}


class Seen:
    """A device, and what it was given: in `launches`, beside what the kernel is called in its cubin."""

    def __init__(self, device: CudaDevice, **changes: Any) -> None:
        self.device = dataclasses.replace(device, limits=dataclasses.replace(device.limits, **changes))
        self.launches: list[dict[str, Any]] = []
        self.last: tuple[Launch, list[Tensor | None], Sequence[Any]] | None = None

    @property
    def limits(self) -> Device:
        return self.device.limits

    def launch(
        self, launch: Launch, tensors: Sequence[Tensor | None], numbers: Sequence[Any], stream: int
    ) -> None:
        """As `CudaDevice.launch`."""
        self.last = (launch, list(tensors), numbers)
        self.device.launch(launch, tensors, numbers, stream)
        addresses = [0 if each is None else each.data_ptr() for each in tensors]
        bits = [int.from_bytes(np.asarray(each).tobytes(), "little") for each in numbers]
        given: dict[str, Any] = {
            "symbol": compiled(launch.source, launch.kernel, self.device.arch).symbol,
            "arguments": addresses + bits,
            "sizes": [8] * len(addresses) + [np.asarray(each).nbytes for each in numbers],
        }
        self.launches.append({**dataclasses.asdict(launch), **given})


def steps(machine: Any, shape: tuple[int, ...]) -> None:
    """All that the kernels do, once."""
    kernels.machine_of = lambda x: machine
    x, residual, dy = (
        torch.ones(shape, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
        for _ in range(3)
    )
    weight, bias, mean, var = (torch.ones(shape[1]) for _ in range(4))
    given = Arguments(x, residual, weight, bias, 1e-5, True)
    _, near, invstd, mask = kernels.forward(given, Running(mean, var, torch.tensor(3), 0.1))
    saved = Saved(x, mask, weight, bias, near, invstd, True)
    kernels.statistics(x)
    kernels.backward(saved, dy, False, True)
    kernels.sums(saved, dy)
    kernels.apply(given, mean, var, True)
    kernels.apply_backward(saved, dy, near, near, True)


def rows(driver: Driver) -> Any:
    """Every kernel by every row of the table."""
    found = {}
    for name, (changes, shape) in ROWS.items():
        machine = Seen(cuda_device(0), **changes)
        steps(machine, shape)
        found[name] = {"given": machine.launches, "seen": told(driver)}
    return found


def told(driver: Driver) -> list[dict[str, Any]]:
    return [dataclasses.asdict(each) for each in driver.calls()]


def again(ordinal: int = 0, row: str = "cooperative grid", batch: int = 32) -> Callable[..., None]:
    """A launch of forward that is ready to be done again, on a stream."""
    changes, (_, *plane) = ROWS[row]
    machine = Seen(cuda_device(ordinal), **changes)
    kernels.machine_of = lambda x: machine
    x = torch.ones((batch, *plane), dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    kernels.statistics(x)
    assert machine.last is not None
    last = machine.last
    return lambda stream=0: machine.device.launch(*last, stream)


def streams(driver: Driver) -> Any:
    launch = again()
    driver.calls()
    for stream in (0, 0xABC0, 0xDEF0, 0xABC0):
        launch(stream)
    return told(driver)


def threads(driver: Driver) -> Any:
    """A thread has no context when it begins."""
    launch = again()
    driver.calls()
    thread = threading.Thread(target=launch)
    thread.start()
    thread.join()
    return told(driver)


def devices(driver: Driver) -> Any:
    """Another device, while the context of the first is current; then the first again."""
    from cuda.bindings import driver as cuda

    launch, other = again(), again(1)
    cuda.cuCtxSetCurrent(cuda_device(0).context)
    driver.calls()
    other()
    launch()
    first, second = (dataclasses.asdict(cuda_device(ordinal).limits) for ordinal in (0, 1))
    return {"seen": told(driver), "first": first, "limits": second}


def warned(launch: Callable[[], Any]) -> str:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        launch()
    return " ".join(str(each.message) for each in told)


def refusals(driver: Driver) -> Any:
    """What is said, and how much was launched. The shape is a new one: what fitted is not asked again."""
    before, found = driver.launches, []
    driver.set_clusters(0)
    found.append(warned(lambda: again(row="cluster", batch=31)))
    driver.set_clusters(None)
    driver.set_cooperative(False)
    found.append(warned(lambda: again(batch=31)))
    driver.set_cooperative(True)
    return {"said": found, "launches": driver.launches - before}


def main() -> None:
    os.environ["BNFOLD_CACHE"] = str(CACHE)
    driver = Driver()
    parts = (rows, streams, threads, devices, refusals)
    print(json.dumps({part.__name__: part(driver) for part in parts}))


if __name__ == "__main__":
    main()
