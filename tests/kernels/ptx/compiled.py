"""The kernels' PTX, as NVRTC makes it, run on the CPU in the place of their source."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnfold.kernels.compile import FOLDER
from bnfold.kernels.launch import Launch
from tests.kernels import host
from tests.kernels.machine import HostMachine
from tests.kernels.ptx.parse import parsed
from tests.kernels.ptx.translate import translated

HERE = Path(__file__).resolve().parent
# No contraction: a multiplication and an addition are one only where the PTX says so.
FLAGS = (
    *("-std=c++17", "-fPIC", "-fvisibility=hidden", "-fno-strict-aliasing"),
    *("-ffp-contract=off", "-fwrapv", "-w", f"-I{HERE}", f"-I{host.HERE}"),
)
Change = Callable[[str], str]


def ptx(source: str, kernel: str, arch: str, folder: Path = FOLDER) -> str:
    """What NVRTC makes of one instance: from .cache, where it was made before of the same sources.

    Raises:
        RuntimeError: it does not compile; the text is the compiler's.
    """
    digest = hashlib.sha256("\0".join([source, kernel, arch, nvrtc_version()]).encode())
    for path in sorted(folder.glob("*.cuh")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    kept = host.CACHE / f"{digest.hexdigest()[:32]}.ptx"
    if not kept.exists():
        text = _compiled(source, kernel, arch, folder)
        kept.parent.mkdir(parents=True, exist_ok=True)
        half = kept.with_suffix(f".{os.getpid()}")
        half.write_text(text)
        half.replace(kept)
    os.utime(kept)  # host.linked drops what nobody uses
    return kept.read_text()


def _compiled(source: str, kernel: str, arch: str, folder: Path) -> str:
    """By NVRTC itself: cuda-core asks for a driver before it gives PTX."""
    from cuda.bindings import nvrtc

    options = (
        f"--gpu-architecture={arch.replace('sm', 'compute')}",
        "--std=c++17",
        f"--include-path={folder}",
    )
    made = nvrtc.nvrtcCreateProgram(f'#include "{source}"\n'.encode(), b"kernel.cu", 0, [], [])
    program = _given(made)
    _given(nvrtc.nvrtcAddNameExpression(program, kernel.encode()))
    status, *_ = nvrtc.nvrtcCompileProgram(program, len(options), [each.encode() for each in options])
    get = (nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog)
    if status == nvrtc.nvrtcResult.NVRTC_SUCCESS:
        get = (nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX)
    text = bytearray(_given(get[0](program)))
    _given(get[1](program, text))
    found = text.decode().rstrip("\0")
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise RuntimeError(f"{kernel} of {source} does not compile for {arch}: {found}")
    nvrtc.nvrtcDestroyProgram(program)
    return found


def _given(answer: tuple[Any, ...]) -> Any:
    """What a function of NVRTC gave."""
    status, *rest = answer
    if status:
        raise RuntimeError(status.name)
    return rest[0] if rest else None


@functools.cache
def nvrtc_version() -> str:
    from cuda.bindings import nvrtc

    return "{1}.{2}".format(*nvrtc.nvrtcVersion())


class PtxHost(host.Host):
    """One kernel's PTX, translated and compiled for the CPU.

    It is not optimized: to compile it takes longer than to run what the tests ask for.
    """

    def __init__(self, text: str) -> None:
        if reason := host.unavailable():
            raise host.HostError(reason)
        self.kernels = ["PTX"]
        self.most_shared = 227 * 1024
        self.sanitize = False
        own = [*host.HERE.glob("host_*.h"), *host.HERE.glob("host_*.cpp"), *HERE.glob("*.h")]
        objects = [
            host.compiled_text(translated(parsed(text)), [*FLAGS, "-O0"], own),
            host.compiled_text(
                '#include "host_machine.cpp"\n', [*FLAGS, "-O2", "-DBNFOLD_LARGE_FRAMES"], own
            ),
        ]
        self.library = ctypes.PyDLL(str(host.linked(objects, ["-shared"])))
        self.library.bnfold_launch.restype = ctypes.c_char_p


@functools.cache
def _host(source: str, kernel: str, arch: str, change: Change | None) -> PtxHost:
    text = ptx(source, kernel, arch)
    return PtxHost(text if change is None else change(text))


@dataclass
class PtxMachine(HostMachine):
    """As `HostMachine`, but what runs is the PTX for an architecture. change: something done to it first."""

    arch: str = "sm_90"
    change: Change | None = None

    def kernel(self, launch: Launch) -> tuple[host.Host, str]:
        """What runs, and by which name."""
        return _host(launch.source, launch.kernel, self.arch, self.change), "PTX"
