"""The plugin library of an installed bnfold: compiled by CMake from the sources in the package, and kept.

In a checkout tools/build_plugin does this, which also gets the headers.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from bnfold.errors import UsageError

__all__ = ["HEADER", "LIBRARY", "SOURCES", "compile_plugin", "kept"]

LIBRARY = "libbnfold_plugin.so"
HEADER = "NvInferRuntime.h"
_PACKAGE = Path(__file__).resolve().parents[1]
# in the package; in a checkout, beside it
_PLUGINS = _PACKAGE / "plugins" if (_PACKAGE / "plugins").is_dir() else _PACKAGE.parent / "plugins"
SOURCES = (_PLUGINS, _PACKAGE / "kernels")
INCLUDES = (  # where TensorRT's packages and containers have their headers
    "/usr/include/x86_64-linux-gnu",
    "/usr/include/aarch64-linux-gnu",
    "/usr/include",
    "/usr/local/tensorrt/include",
    "/usr/local/include",
)
ARCHITECTURES = (75, 80, 90, 100, 120)  # code for each that nvcc knows, and PTX of the last for newer ones


def kept() -> Path:
    """Where the library is once it is compiled: in the user's cache, under a hash of its sources."""
    found = hashlib.sha256()
    for folder in SOURCES:
        for path in sorted(each for each in folder.iterdir() if each.suffix not in ("", ".py", ".pyc")):
            found.update(path.name.encode() + b"\0" + path.read_bytes())
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "bnfold" / "plugin" / found.hexdigest()[:32] / LIBRARY


def compile_plugin() -> Path:
    """Compile the library, which takes minutes, and put it where `kept` says. One that is there stays.

    Raises:
        UsageError: a tool or TensorRT's headers are missing, or it does not compile; the text says what to
            do.
    """
    place = kept()
    if place.is_file():
        return place
    cmake = _tool("cmake", "", "apt install cmake, or pip install cmake")
    _tool(os.environ.get("CXX") or "g++", "", "apt install g++")
    cuda = os.path.join(os.environ.get("CUDA_HOME") or "/usr/local/cuda", "bin")
    nvcc = _tool(os.environ.get("CUDACXX") or "nvcc", cuda, "install the CUDA toolkit, or set CUDACXX")
    options = [f"-DTENSORRT_INCLUDE_DIR={_headers()}", f"-DCMAKE_CUDA_COMPILER={nvcc}"]
    options.append(f"-DCMAKE_CUDA_ARCHITECTURES={_architectures(nvcc)}")
    if shutil.which("ninja"):
        options.append("-GNinja")
    place.parent.mkdir(parents=True, exist_ok=True)
    log = place.parent / "build.log"
    with tempfile.TemporaryDirectory(dir=place.parent) as work:
        _run([cmake, "-S", str(SOURCES[0]), "-B", work, *options], log)
        _run([cmake, "--build", work, "--parallel"], log)
        os.replace(Path(work) / LIBRARY, place)  # whole, or not at all
    return place


def _tool(name: str, folder: str, cure: str) -> str:
    """A program on the PATH, in `folder`, or where this Python's packages put theirs."""
    found = shutil.which(name)
    for place in filter(None, (folder, os.path.dirname(sys.executable))):
        found = found or shutil.which(name, path=place)
    if found is None:
        raise UsageError(f"the plugin library cannot be built: {name} is not found: {cure}")
    return found


def _headers() -> str:
    """The folder of TensorRT's C++ headers."""
    named = os.environ.get("TENSORRT_INCLUDE_DIR")
    places = (named,) if named else INCLUDES
    for place in places:
        if (Path(place) / HEADER).is_file():
            return place
    raise UsageError(
        f"the plugin library cannot be built: TensorRT's C++ headers are not found (no {HEADER} in "
        f"{', '.join(places)}): apt install libnvinfer-headers-dev, or unpack NVIDIA's archive of "
        "TensorRT 10 or newer, and set TENSORRT_INCLUDE_DIR to the folder of its headers"
    )


def _architectures(nvcc: str) -> str:
    """As CMake writes them; those that this nvcc does not know are left out."""
    done = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=False)
    return _listed(each for each in ARCHITECTURES if f"compute_{each}" in done.stdout.split())


def _listed(known: Iterable[int]) -> str:
    *others, last = list(known) or ARCHITECTURES
    return ";".join([*(f"{each}-real" for each in others), str(last)])


def _run(command: list[str], log: Path) -> None:
    """Run a step of the build.

    Raises:
        UsageError: it fails; the text has the first error, and the file with all that was said.
    """
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        log.write_text(done.stdout, encoding="utf-8")
        errors = [line.strip() for line in done.stdout.splitlines() if "error" in line.lower()]
        first = errors[0] if errors else f"{command[0]} ends with status {done.returncode}"
        raise UsageError(f"the plugin library does not build: {first} (all of it is in {log})")
