"""Kernels compiled at their first use, by NVRTC through cuda-core, and kept on disk.

No CUDA toolkit is needed: the sources include no header but their own. What was compiled lies in
`$BNFOLD_CACHE`, or else in the user's cache folder, under a key of the sources, the kernel, the
architecture and the compiler's version. No path is part of it: the folder can be carried to another machine.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import io
import itertools
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnfold.origin import extra

__all__ = ["FOLDER", "Compiled", "KernelError", "Refused", "cache_folder", "compiled", "cuda_core"]

FOLDER = Path(__file__).resolve().parent  # of the sources
MOST_BYTES = 256 * 2**20  # of the disk cache; what was not read for longest goes first


class KernelError(RuntimeError):
    """A kernel cannot be had or run here; the text says why. expected: there is nothing to warn of."""

    def __init__(self, reason: str, expected: bool = False) -> None:
        super().__init__(reason)
        self.expected = expected


class Refused(KernelError):
    """A device does not take a launch whose blocks have to run together; it may take another one."""


@dataclass(frozen=True)
class Compiled:
    """Machine code for one architecture. symbol: the kernel's name in it. log: the assembler's."""

    symbol: str
    cubin: bytes
    log: str


def compiled(source: str, kernel: str, arch: str) -> Compiled:
    """A kernel from the disk cache, or compiled and put there.

    Args:
        source: a file of `FOLDER`, "forward.cuh".
        kernel: the C++ name of an instance in it.
        arch: "sm_90".

    Raises:
        KernelError: cuda-core or NVRTC is missing, or the compiler refuses.
    """
    core = cuda_core()
    key, cache, kept = _key(source, kernel, arch), _cache(), b""
    with _warned():
        if cache is not None:
            kept = cache.get(key) or b""
    parts = kept.split(b"\0", 2)
    if len(parts) == 3:
        return Compiled(parts[0].decode(), parts[2], parts[1].decode())
    found = _compiled(core, source, kernel, arch)
    with _warned():
        if cache is not None:
            cache[key] = b"\0".join((found.symbol.encode(), found.log.encode(), found.cubin))
    return found


def cache_folder() -> Path:
    """Where compiled kernels are kept."""
    chosen = os.environ.get("BNFOLD_CACHE")
    if chosen:
        return Path(chosen)
    home = {"win32": "LOCALAPPDATA"}.get(sys.platform, "XDG_CACHE_HOME")
    return Path(os.environ.get(home) or Path.home() / ".cache") / "bnfold" / "kernels"


def cuda_core() -> Any:
    """The package that compiles and launches.

    Raises:
        KernelError: it is missing, or older than its disk cache of programs.
    """
    try:
        import cuda.core
    except ImportError as error:
        raise KernelError(f"{error}: {extra('gpu')} brings what compiles and launches the kernels") from error
    found = str(getattr(cuda.core, "__version__", "0.1"))
    if found.startswith("0."):
        raise KernelError(f"cuda-core >= 1.0 is needed, found {found}: {extra('gpu')} brings it")
    return cuda.core


def _compiled(core: Any, source: str, kernel: str, arch: str) -> Compiled:
    from cuda.pathfinder import DynamicLibNotFoundError

    log = io.StringIO()
    try:
        program = core.Program(_text(source), "c++", _options(core, arch))
        code = program.compile("cubin", name_expressions=(kernel,), logs=log)
        symbol = code.symbol_mapping[kernel]
    except DynamicLibNotFoundError as error:
        raise KernelError(f"NVRTC is not found: {extra('gpu')} brings it") from error
    except Exception as error:  # cuda-core's own kinds, and those of its bindings
        said = str(error).rstrip("\0\n")
        raise KernelError(f"{kernel} of {source} does not compile for {arch}: {said}") from error
    name = symbol.decode() if isinstance(symbol, bytes) else symbol
    return Compiled(name, bytes(code.code), log.getvalue().replace("\0", ""))


def _text(source: str) -> str:
    return f'#include "{source}"\n'


OPTIONS = {"std": "c++17", "ptxas_options": "--verbose", "brief_diagnostics": True}


def _options(core: Any, arch: str) -> Any:
    return core.ProgramOptions(arch=arch, include_path=str(FOLDER), **OPTIONS)


def _key(source: str, kernel: str, arch: str) -> bytes:
    what = (_text(source), kernel, arch, OPTIONS, _compiler(), _sources())
    return hashlib.sha256(repr(what).encode()).digest()


@functools.cache
def _compiler() -> str:
    """NVRTC's version, once it is loaded from where it lies; "" where it is missing."""
    from cuda.bindings import nvrtc
    from cuda.pathfinder import DynamicLibNotFoundError, load_nvidia_dynamic_lib

    try:
        try:
            load_nvidia_dynamic_lib("nvrtc")
        except DynamicLibNotFoundError:
            _load_from_path()
        return ".".join(map(str, nvrtc.nvrtcVersion()[1:]))
    except (DynamicLibNotFoundError, OSError, RuntimeError):
        return ""  # compiling says what is wrong


def _load_from_path() -> None:
    """Loads NVRTC from a folder of sys.path, where `pip install --target` leaves it.

    cuda-pathfinder looks into site-packages and where the system does; but it finds what is loaded.
    """
    from cuda.bindings import __version__ as bindings

    major = bindings.partition(".")[0]
    names = (
        (f"lib/libnvrtc.so.{major}", "libnvrtc-builtins.so.*"),
        (f"bin/**/nvrtc64_{major}0_0.dll", "nvrtc-builtins64_???.dll"),
    )
    for folder, (name, builtins) in itertools.product(sys.path, names):
        for found in Path(folder).glob(f"nvidia/*/{name}"):
            for part in (*found.parent.glob(builtins), found):  # NVRTC opens the first by its name alone
                ctypes.CDLL(str(part))
            return


@functools.cache
def _sources() -> bytes:
    digest = hashlib.sha256()
    for path in sorted(FOLDER.glob("*.cuh")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.digest()


@functools.cache
def _cache() -> Any:
    """The cache, or None where its folder cannot be made."""
    from cuda.core.utils import FileStreamProgramCache

    with _warned():
        return FileStreamProgramCache(cache_folder(), max_size_bytes=MOST_BYTES)
    return None


@contextmanager
def _warned() -> Iterator[None]:
    """Work on the cache: where it fails, kernels are compiled anew, and a warning says so."""
    try:
        yield
    except OSError as error:
        # Not the error's whole text, which may name a file of this moment and make each warning a new one.
        _warn(f" in {cache_folder()}", error.strerror or str(error))
    except RuntimeError as error:  # the user has no home
        _warn("", str(error))


@functools.cache
def _warn(where: str, reason: str) -> None:
    warnings.warn(
        f"bnfold cannot keep its compiled kernels{where} ({reason}): each process compiles them again. "
        "Set BNFOLD_CACHE to a folder that can be written",
        stacklevel=2,
    )
