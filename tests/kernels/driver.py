"""A CUDA driver that runs nothing: the real cuda-core and bindings ask it, and what is launched is recorded.

`Driver()` loads driver.cpp before anybody has asked for libcuda.so.1, for the rest of the process: so it is
for a process of its own. Its devices are an H200 (0), an A100 (1) and a T4 (2). NVRTC works beside it.
"""

from __future__ import annotations

import ctypes
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.kernels import host

SOURCE = host.HERE / "driver.cpp"
NAME = "libcuda.so.1"


def library() -> Path:
    """The stand-in for the driver's library, built.

    Raises:
        HostError: it does not compile.
    """
    built = host.compiled_text('#include "driver.cpp"\n', [*host.FLAGS, f"-I{host.HERE}"], [SOURCE])
    return host.linked([built], ["-shared", "-ldl", f"-Wl,-soname,{NAME}"])


@dataclass(frozen=True)
class Call:
    """A call of the driver. context: the device whose context was current behind it, -1: none.

    call: "launch", "allow" (so many bytes of shared memory), or "set", "push" and "pop" of contexts.
    others: numbers of launch attributes other than cluster and cooperative.
    arguments: the bits of each, as its size by the cubin's own record says; those are `sizes`.
    """

    call: str
    context: int
    kernel: str = ""
    grid: tuple[int, ...] = ()
    block: tuple[int, ...] = ()
    shared: int = 0
    cluster: int = 1
    cooperative: int = 0
    others: list[int] = field(default_factory=list)
    stream: int = 0
    sizes: list[int] = field(default_factory=list)
    arguments: list[int] = field(default_factory=list)
    bytes: int = 0


class Driver:
    """The driver of this process, from now on."""

    def __init__(self) -> None:
        self._library: Any = ctypes.CDLL(str(library()))
        self._library.recorded.restype = ctypes.c_char_p
        self._library.launch_count.restype = ctypes.c_long

    def calls(self) -> list[Call]:
        """What was called since this was last asked."""
        text = self._library.recorded().decode()
        return [Call(**each) for each in json.loads(f"[{text}]")]

    @property
    def launches(self) -> int:
        """How many there were, recorded or not."""
        return int(self._library.launch_count())

    def record(self, on: bool) -> None:
        """Whether launches are recorded, which takes longer than to count them."""
        self._library.set_recording(int(on))

    def set_clusters(self, most: int | None) -> None:
        """How many clusters can be active at one time. None: a block on each multiprocessor."""
        self._library.set_clusters(-1 if most is None else most)

    def set_cooperative(self, allowed: bool) -> None:
        """Whether cooperative launches are accepted."""
        self._library.set_cooperative(int(allowed))

    def refuse(self, on: bool) -> None:
        """Whether every launch is refused."""
        self._library.set_refusing(int(on))
