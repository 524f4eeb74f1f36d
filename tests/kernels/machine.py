"""A stand-in for a CUDA device: the kernels run on the CPU, on tensors in its memory.

The limits are chosen so that each row of the launch table is taken by tensors that are small.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bnfold.kernels.launch import CLUSTERS, Device, Launch, instances
from bnfold.nn.kernel_calls import SUMS
from tests.kernels.host import CACHE, KERNELS, Host, HostError

# Shared memory for a window of about 512 vectors, for those devices whose blocks hold little.
LITTLE = 24 * 1024
READING = re.compile(r"\d+, bnfold::Layout::\w+")  # in a kernel's C++ name
DEVICES = {
    "one block": Device((9, 0), multiprocessors=2, shared_memory=227 * 1024, clusters=8, cooperative=True),
    "cluster": Device((9, 0), multiprocessors=6, shared_memory=LITTLE, clusters=8, cooperative=True),
    # Without rings, which have tests of their own.
    "cooperative grid": Device((7, 5), multiprocessors=5, shared_memory=LITTLE, clusters=1, cooperative=True),
    "one block, windows": Device(
        (7, 5), multiprocessors=3, shared_memory=LITTLE, clusters=1, cooperative=False
    ),
}


@dataclass
class HostMachine:
    """As `CudaDevice`. launches: what was launched, in order; idle: it runs nothing."""

    limits: Device
    seed: int = 0
    sanitize: bool = False
    folder: Path = KERNELS
    idle: bool = False

    def __post_init__(self) -> None:
        self.launches: list[Launch] = []

    def launch(
        self, launch: Launch, tensors: Sequence[Tensor | None], numbers: Sequence[Any], stream: int
    ) -> None:
        """Runs a kernel to its end."""
        self.launches.append(launch)
        if self.idle:
            return
        if launch.cooperative:
            # What an earlier launch wrote is not to be found by a block that reads too early, nor more room.
            size = launch.units * launch.ranks * launch.group * SUMS
            *others, sums, words = tensors
            assert sums is not None
            assert sums.numel() * sums.element_size() >= size
            tensors = [*others, torch.full((size,), 255, dtype=torch.uint8), words]
        code, name = self.kernel(launch)
        try:
            code.launch(
                name,
                grid=launch.grid,
                block=launch.block,
                cluster=launch.cluster,
                cooperative=launch.cooperative,
                shared=launch.shared,
                arguments=[*map(memory, tensors), *numbers],
                seed=self.seed,
            )
        except HostError:
            words = tensors[-1]
            if launch.cooperative and words is not None:  # some blocks arrived; later launches would hang
                words.zero_()
            raise

    def kernel(self, launch: Launch) -> tuple[Host, str]:
        """What runs, and the name by which it does."""
        return compiled(launch.source, launch.kernel, self.sanitize, self.folder), launch.kernel


SWITCH = '#pragma once\nextern "C" { __attribute__((visibility("default"))) int switched = -1; }\n'


@functools.cache
def switchable(name: str, change: Callable[[Path, str], str]) -> Path:
    """A copy of the sources, as `change` makes them of path and text, that ask a number, `switched`."""
    folder = CACHE.parent / name
    folder.mkdir(parents=True, exist_ok=True)
    for path in KERNELS.glob("*.cuh"):
        text = change(path, path.read_text())
        if path.name == "port.cuh":
            text = text.replace("#pragma once\n", SWITCH)
        new = folder / f"{path.name}.{os.getpid()}"  # another process may be reading the old one
        new.write_text(text)
        new.replace(folder / path.name)
    return folder


@dataclass
class Switched(HostMachine):
    """Runs a copy of the sources with that number."""

    switched: int = -1

    def launch(
        self, launch: Launch, tensors: Sequence[Tensor | None], numbers: Sequence[Any], stream: int
    ) -> None:
        try:
            library = compiled(launch.source, launch.kernel, self.sanitize, self.folder).library
        except HostError as error:  # which is not what is asked
            raise RuntimeError(error) from error
        ctypes.c_int.in_dll(library, "switched").value = self.switched
        super().launch(launch, tensors, numbers, stream)


def compiled(source: str, kernel: str, sanitize: bool, folder: Path) -> Host:
    """A kernel, by its C++ name, compiled with its family where tests need all of that."""
    together = family(kernel) if folder == KERNELS and not sanitize else [kernel]
    return _compiled(source, tuple(together), sanitize, folder)


def family(kernel: str) -> list[str]:
    """The instances that differ from one only in how they read their values, with that one."""
    types_and_exchange = READING.sub("", kernel)
    every = instances(kernel.removeprefix("bnfold::").partition("<")[0], CLUSTERS)
    return [each for each in every if READING.sub("", each) == types_and_exchange]


@functools.cache
def _compiled(source: str, kernels: tuple[str, ...], sanitize: bool, folder: Path) -> Host:
    return Host(source, kernels, folder=folder, sanitize=sanitize)


def memory(tensor: Tensor | None) -> np.ndarray[Any, Any] | None:
    """The bytes of a dense tensor, in whatever order of dimensions."""
    if tensor is None:
        return None
    size = tensor.numel() * tensor.element_size()
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(tensor.data_ptr()))
