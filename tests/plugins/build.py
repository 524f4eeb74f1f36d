"""Builds what the tests of the plugin drive: the library on a CPU that runs kernels, and the harness."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.kernels import host

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PLUGINS = ROOT / "plugins"
SHARED = ["call.cpp", "check.cpp", "creators.cpp", "plan.cpp", "plugin.cpp"]  # with any machine
BUILT = ROOT / ".cache" / "plugin"
LEAN = ROOT / ".cache" / "tensorrt-lean"  # TensorRT's lean runtime, where tools/test puts it
LIBRARY, HARNESS = "libbnfold_plugin.so", "harness.so"
CI = "90-virtual"  # the architecture that has all kernels; tests/kernels/test_compile.py makes code of them


@functools.cache
def unavailable() -> str | None:
    """Why nothing can be built here, or None where it can."""
    if (reason := host.unavailable()) is not None:
        return reason
    return None if headers() else "TensorRT's headers are not here: tools/build_plugin gets them"


@functools.cache
def headers() -> list[str]:
    """Folders of TensorRT's and CUDA's headers, as `tools/build_plugin --headers` finds them, or none."""
    done = subprocess.run(
        [ROOT / "tools" / "build_plugin", "--headers"], capture_output=True, text=True, check=False
    )
    return done.stdout.split() if done.returncode == 0 else []


def _flags() -> list[str]:
    return [*host.FLAGS, f"-I{HERE}", f"-I{host.HERE}", f"-I{PLUGINS}", f"-I{host.KERNELS}"] + [
        word for folder in headers() for word in ("-isystem", folder)
    ]


def _used(*folders: Path) -> list[Path]:
    return [
        path for each in folders for path in each.iterdir() if path.suffix in (".h", ".hpp", ".cuh", ".cpp")
    ]


@functools.cache
def harness() -> Path:
    """A shared library for harness.py."""
    text = '#include "harness.cpp"\n'
    return host.linked([host.compiled_text(text, _flags(), _used(HERE))], ["-shared", "-ldl"])


@functools.cache
def of_a_runtime() -> Path:
    """machine_cuda.cpp on the runtime of runtime.cpp, for test_limits.py."""
    flags, used = [*_flags(), '-DBNFOLD_ARCHITECTURES="none"'], _used(HERE, PLUGINS)
    names = ("machine_cuda.cpp", "runtime.cpp")
    objects = [host.compiled_text(f'#include "{name}"\n', flags, used) for name in names]
    return host.linked(objects, ["-shared"])


@functools.cache
def on_the_cpu() -> Path:
    """The plugin library with machine_host.cpp as its machine."""
    used = _used(HERE, host.HERE, PLUGINS, host.KERNELS)
    work = [(f'#include "{name}"\n', _flags()) for name in [*SHARED, "machine_host.cpp"]]
    work.append(('#include "host_machine.cpp"\n', [*_flags(), "-O2"]))
    for kernel in ("forward", "apply"):
        for kind in ("float32", "float16", "bfloat16"):
            named = [f"-DINSTANCE_KERNEL={kernel}", f"-DINSTANCE_TYPE={kind}"]
            # Compiling takes longer than running what the tests ask for.
            work.append(('#include "host_kernels.cpp"\n', [*_flags(), "-O0", *named]))
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(lambda each: host.compiled_text(*each, used), work))
    return host.linked(objects, ["-shared"])


@functools.cache
def library(kernels: bool) -> Path:
    """The library that users get, with or without kernels, whose PTX is not optimized: nothing reads it.

    Raises:
        RuntimeError: it does not build.
    """
    if kernels:
        return _built(BUILT / "kernels", ["--architectures", CI], CUDAFLAGS="-Xcicc -O0")
    return _built(BUILT / "host", ["--no-kernels"])


def _built(folder: Path, options: list[str], **variables: str) -> Path:
    """By tools/build_plugin, which keeps what it has built; `variables` of the environment are for cmake."""
    path = folder / LIBRARY
    command = [ROOT / "tools" / "build_plugin", *options, "--output", path]
    environment = {**os.environ, **variables}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"tools/build_plugin failed:\n{done.stdout}{done.stderr}")
    return path


def has_nvcc() -> bool:
    """Whether kernels can be compiled, as tools/build_plugin judges it."""
    home = Path(os.environ.get("CUDA_HOME") or "/usr/local/cuda")
    return bool(os.environ.get("CUDACXX") or shutil.which("nvcc") or (home / "bin" / "nvcc").exists())


def prebuilt() -> tuple[Path, Path] | None:
    """The harness and the library in the folder $BNFOLD_PLUGIN_BUILT, if that is set; see `main`."""
    folder = os.environ.get("BNFOLD_PLUGIN_BUILT")
    return (Path(folder) / HARNESS, Path(folder) / LIBRARY) if folder else None


@functools.cache
def for_a_gpu(capability: tuple[int, int]) -> Path:
    """$BNFOLD_PLUGIN, or a library with kernels for one compute capability.

    Raises:
        RuntimeError: it does not build.
    """
    if chosen := os.environ.get("BNFOLD_PLUGIN"):
        return Path(chosen)
    return _built(BUILT / "gpu", ["--architectures", "{}{}-real".format(*capability)])


def main(folder: Path, architectures: str) -> None:
    """What tests/gpu/test_plugin.py needs, into a folder, for a machine without nvcc or TensorRT's headers.

    Args:
        folder: $BNFOLD_PLUGIN_BUILT of that machine.
        architectures: as tools/build_plugin takes them, "90".
    """
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(harness(), folder / HARNESS)
    shutil.copy(_built(BUILT / "gpu", ["--architectures", architectures]), folder / LIBRARY)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
