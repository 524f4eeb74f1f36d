"""Runs the kernels of bnfold/kernels on the CPU: compiles their own source with g++ against "host_port.h"."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

if sys.platform != "win32":
    import fcntl

HERE = Path(__file__).resolve().parent
KERNELS = HERE.parents[1] / "bnfold" / "kernels"
CACHE = HERE.parents[1] / ".cache" / "host-kernels"

FLAGS = (
    *("-std=c++17", "-Og", "-g1", "-fPIC", "-fvisibility=hidden", "-fno-strict-aliasing"),
    *("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"),  # "#pragma unroll" is for CUDA compilers
)
SANITIZE = ("-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")
SPLIT = 6  # from so many kernels on, two compilers share them
KEPT = 2 * 24 * 3600  # seconds for which the cache keeps what nobody uses

Argument = np.generic | np.ndarray[Any, Any] | None


class HostError(Exception):
    """The kernels do not compile, or a launch went wrong: a deadlock, wrong arguments, a sanitizer's word."""


class _Parameter(ctypes.Structure):
    _fields_ = [("size", ctypes.c_int), ("kind", ctypes.c_char)]


class _Argument(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_void_p), ("type", _Parameter)]


class _Launch(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int) for name in ("grid", "block", "cluster", "cooperative")),
        *((name, ctypes.c_longlong) for name in ("shared", "most_shared")),
        ("seed", ctypes.c_ulonglong),
    ]


class Host:
    """Kernels of one .cuh, compiled for the CPU.

    Args:
        source: the file in `folder` that defines them, "forward.cuh".
        kernels: their names in C++, an instance each: "bnfold::forward<float, 4, bnfold::Relu>".
        folder: where `source` is.
        sanitize: under AddressSanitizer and UndefinedBehaviorSanitizer, each launch in a process of its own.
        most_shared: bytes of shared memory that a block can have.
        flags: more of them for the compiler.
    """

    def __init__(
        self,
        source: str,
        kernels: Sequence[str],
        *,
        folder: Path = KERNELS,
        sanitize: bool = False,
        most_shared: int = 227 * 1024,
        flags: Sequence[str] = (),
    ) -> None:
        if reason := unavailable(sanitize):
            raise HostError(reason)
        self.kernels = list(kernels)
        self.most_shared = most_shared
        self.sanitize = sanitize
        # The machine is not checked itself, but tells AddressSanitizer which stack it is on.
        machine = [*FLAGS, *flags, f"-I{HERE}", *(["-DBNFOLD_SANITIZED"] if sanitize else [])]
        checked = [*machine, *SANITIZE] if sanitize else machine

        own = [*HERE.glob("host_*.h"), *HERE.glob("host_*.cpp")]
        used = [*own, *folder.glob("*.cuh"), *KERNELS.glob("*.cuh")]
        here = [*checked, f"-I{folder}", f"-I{KERNELS}"]
        work = [(text, here, used) for text in _texts(source, self.kernels)]
        work.append(('#include "host_machine.cpp"\n', [*machine, "-O2"], own))
        if sanitize:
            work.append(('#include "host_main.cpp"\n', checked, own))
        with ThreadPoolExecutor(2) as pool:
            objects = list(pool.map(lambda each: compiled_text(*each), work))
        self._built = linked(objects, SANITIZE if sanitize else ["-shared"])
        if not sanitize:
            self.library = ctypes.PyDLL(str(self._built))  # which keeps the GIL: one launch at a time
            self.library.bnfold_launch.restype = ctypes.c_char_p

    def launch(
        self,
        kernel: str,
        *,
        grid: int,
        block: int,
        cluster: int = 1,
        cooperative: bool = False,
        shared: int = 0,
        arguments: Sequence[Argument],
        seed: int = 0,
    ) -> None:
        """Run a kernel to its end.

        Args:
            kernel: one of those that the constructor was given.
            grid: blocks.
            block: threads of each.
            cluster: consecutive blocks that are resident together.
            cooperative: all blocks are.
            shared: bytes of shared memory of each block.
            arguments: arrays are passed as pointers to their first element, None as the null pointer, numpy's
                scalars by value.
            seed: 0 lets threads take turns in order; others choose at random whose turn it is, 4 of them that
                follow each other in four ways.

        Raises:
            HostError: with what went wrong; the arrays are then in any state.
        """
        for argument in arguments:
            if isinstance(argument, np.ndarray) and not argument.flags.c_contiguous:
                raise HostError("an array that is not contiguous")
        launch = _Launch(grid, block, cluster, cooperative, shared, self.most_shared, seed)
        run = self._launch_apart if self.sanitize else self._launch_here
        wrong = run(self.kernels.index(kernel), launch, arguments)
        if wrong is not None:
            raise HostError(f"{kernel}, seed {seed}: {wrong}")

    def _launch_here(self, kernel: int, launch: _Launch, arguments: Sequence[Argument]) -> str | None:
        given = (_Argument * len(arguments))()
        values = []
        for place, argument in zip(given, arguments, strict=True):
            if argument is None or isinstance(argument, np.ndarray):
                value = np.uintp(0 if argument is None else argument.ctypes.data).tobytes()
            else:
                value = argument.tobytes()
            values.append(ctypes.create_string_buffer(value, len(value)))
            place.bytes = ctypes.addressof(values[-1])
            place.type = _type(argument)
        wrong = self.library.bnfold_launch(kernel, ctypes.byref(launch), given, len(arguments))
        return None if wrong is None else str(wrong, "utf-8")

    def _launch_apart(self, kernel: int, launch: _Launch, arguments: Sequence[Argument]) -> str | None:
        arrays = {_memory(each): each for each in arguments if isinstance(each, np.ndarray)}
        spans = sorted(arrays)
        if any(start + size > after for (start, size), (after, _) in pairwise(spans)):
            return "arrays that overlap and are not the same"
        parts = [struct.pack("=i", kernel), bytes(launch), struct.pack("=i", len(spans))]
        for start, size in spans:
            parts += [struct.pack("=iq", start % 16, size), arrays[start, size].tobytes()]
        parts.append(struct.pack("=i", len(arguments)))
        for argument in arguments:
            parts.append(bytes(_type(argument)))
            if argument is None:
                parts.append(struct.pack("=i", -1))
            elif isinstance(argument, np.ndarray):
                parts.append(struct.pack("=i", spans.index(_memory(argument))))
            else:
                parts.append(argument.tobytes())
        options = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
        environment = {**os.environ, **options}
        done = subprocess.run([self._built], input=b"".join(parts), capture_output=True, env=environment)
        if done.returncode:
            return f"exit status {done.returncode}\n{done.stderr.decode(errors='replace')}"
        (length,) = struct.unpack_from("=i", done.stdout)
        if length:
            return done.stdout[4 : 4 + length].decode()
        at = 4
        for span in spans:
            array = arrays[span]
            after = done.stdout[at : at + array.nbytes]
            at += array.nbytes
            if array.flags.writeable:
                array.reshape(-1).view(np.uint8)[:] = np.frombuffer(after, np.uint8)
            elif after != array.tobytes():
                return "the kernel changed an array that is only to be read"
        return None


@functools.cache
def unavailable(sanitize: bool = False) -> str | None:
    """Why kernels can not be run here, or None where they can."""
    if not sys.platform.startswith("linux"):
        return "kernels run on the CPU only under Linux"
    if shutil.which("g++") is None:
        return "kernels run on the CPU only where g++ is"
    command = ["g++", "-print-file-name=libasan.so"]
    if sanitize and "/" not in subprocess.run(command, capture_output=True, text=True).stdout:
        return "this g++ comes without AddressSanitizer"
    return None


def _type(argument: Argument) -> _Parameter:
    if argument is None or isinstance(argument, np.ndarray):
        return _Parameter(ctypes.sizeof(ctypes.c_void_p), b"p")
    kind = argument.dtype.kind
    return _Parameter(argument.nbytes, b"f" if kind == "f" else b"i" if kind in "iub" else b"v")


def _memory(array: np.ndarray[Any, Any]) -> tuple[int, int]:
    return array.ctypes.data, array.nbytes


def _texts(source: str, kernels: Sequence[str]) -> list[str]:
    """What is compiled: a launcher for each kernel, and in the first text the function that is called."""
    parameters = "const Launch* shape, const Argument* arguments, int count"
    numbers = range(len(kernels))
    texts = []
    for share in [numbers] if len(kernels) < SPLIT else [numbers[::2], numbers[1::2]]:
        text = f'#include "{source}"\n#include "host_launch.h"\nnamespace bnfold::host {{\n'
        for n in share:
            text += f"const char* launch_{n}({parameters}) {{\n"
            text += f"    return launch(&{kernels[n]}, *shape, arguments, count);\n}}\n"
        texts.append(text + "}\n")
    table = "namespace bnfold::host {\n"
    table += "".join(f"const char* launch_{n}({parameters});\n" for n in numbers)
    table += f"}}\nusing namespace bnfold::host;\nconst char* bnfold_launch(int kernel, {parameters}) {{\n"
    table += f"    const char* (*const kernels[])({parameters}) = {{\n"
    table += "".join(f"        launch_{n},\n" for n in numbers)
    table += "    };\n    return kernels[kernel](shape, arguments, count);\n}\n"
    texts[0] += table
    return texts


def compiled_text(text: str, flags: Sequence[str], used: Sequence[Path]) -> Path:
    """The object file of `text`, which includes none but the files `used`."""
    contents = [f"{path.name}\n{path.read_text()}" for path in sorted(used)]
    return _cached([*flags, "-c", "-x", "c++", "-"], ".o", text, contents)


def linked(objects: Sequence[Path], flags: Sequence[str]) -> Path:
    built = _cached([*map(str, objects), *flags], ".so" if "-shared" in flags else "", "", [])
    for path in CACHE.iterdir():
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime < time.time() - KEPT:
                path.unlink()
    return built


def _cached(arguments: Sequence[str], suffix: str, text: str, used: Sequence[str]) -> Path:
    """What g++ makes of arguments and text; made anew only where something, `used` included, has changed."""
    key = hashlib.sha256("\0".join([_version(), *arguments, text, *used]).encode()).hexdigest()[:32]
    path = CACHE / f"{key}{suffix}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{key}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other processes wait instead of compiling the same
        if not path.exists():
            half = path.with_name(f"{path.name}.{os.getpid()}.half")
            command = ["g++", *arguments, "-o", str(half)]
            done = subprocess.run(command, input=text, capture_output=True, text=True, cwd=CACHE)
            if done.returncode:
                raise HostError(f"{' '.join(command)}\n{done.stderr}")
            half.replace(path)
        os.utime(path)
    return path


@functools.cache
def _version() -> str:
    return subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True).stdout
