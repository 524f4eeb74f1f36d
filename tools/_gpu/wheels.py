"""The wheels that tools/gpu_check needs beside torch, for a machine that reaches no package index.

They are for CPython 3.12 on x86-64, with a torch for CUDA 13, which brings NVRTC; 15 MB in all. There,
`tools/gpu_check --here --with DIR` unpacks them and goes on.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tools._common import ROOT

PYTHON = "3.12"
PACKAGES = ("cuda-core", "cuda-bindings", "cuda-pathfinder")  # as constraints.txt pins them
PLATFORMS = (
    "manylinux_2_28_x86_64",
    "manylinux_2_27_x86_64",
    "manylinux_2_24_x86_64",
    "manylinux2014_x86_64",
)
MOST = 20e6  # bytes


def pinned() -> list[str]:
    """The packages with their versions."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line for name in PACKAGES for line in lines if re.match(f"{name}==", line)]


def command(folder: Path) -> list[str]:
    """What fetches them."""
    platforms = (word for each in PLATFORMS for word in ("--platform", each))
    options = ["--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", PYTHON]
    return [sys.executable, "-m", "pip", "download", "-q", *options, *platforms, "-d", str(folder), *pinned()]


def fetched(folder: Path) -> int:
    """Fetches them into a folder, and names them: an exit status."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(command(folder), check=False)
    if done.returncode:
        print("gpu_check: the wheels could not be fetched: pip needs a package index here", file=sys.stderr)
        return 1
    wheels = sorted(folder.glob("*.whl"))
    size = sum(each.stat().st_size for each in wheels)
    for each in wheels:
        print(f"{each.name}, {each.stat().st_size / 1e6:.1f} MB")
    print(f"{size / 1e6:.1f} MB. On the machine with the GPU: tools/gpu_check --here --with {folder}")
    return int(size > MOST)
