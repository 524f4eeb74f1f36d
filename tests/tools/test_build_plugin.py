"""tools/build_plugin: what it says, and what it falls back on. That it builds, tests/plugins show."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.plugins.build import headers, library, unavailable

ROOT = Path(__file__).resolve().parents[2]
REASON = unavailable()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")
# What the tool, CMake and compilers call, but for Python.
COMMANDS = (
    *("bash", "cat", "cp", "cut", "dirname", "du", "env", "find", "flock", "grep", "head", "ls", "mkdir"),
    *("mv", "rm", "sed", "sha256sum", "tail", "touch", "uname", "cmake", "g++"),
    *("ar", "as", "ld", "make", "ranlib"),
)


def run(*arguments: str | Path, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(ROOT / "tools" / "build_plugin"), *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env={**os.environ, **environment}, check=False
    )


@pytest.fixture
def without(tmp_path: Path) -> Path:
    """A folder for PATH with the commands above, and nothing else; tests take more away."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for command in COMMANDS:
        found = shutil.which(command)
        if found is None:
            pytest.skip(f"{command} is not here")
        (folder / command).symlink_to(found)
    python = folder / "python3"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return folder


def test_a_second_build_costs_nothing(tmp_path: Path) -> None:
    library(kernels=False)
    done = run("--no-kernels", "--output", "here/a.so", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")  # it says when it compiles
    assert done.stdout.startswith(f"{tmp_path}/here/a.so: no kernels, ")
    assert (tmp_path / "here" / "a.so").read_bytes() == library(kernels=False).read_bytes()


def test_without_nvcc_the_rest_is_built(without: Path, tmp_path: Path) -> None:
    done = run("--output", tmp_path / "a.so", **no_nvcc(without))
    assert done.returncode == 0, done.stderr
    assert "nvcc is not found: building without kernels, for tests." in done.stderr
    assert done.stdout.startswith(f"{tmp_path}/a.so: no kernels, ")
    found = run("--headers", **no_nvcc(without)).stdout.splitlines()
    assert found == [headers()[0], str(ROOT / ".cache/cuda-headers/nvidia/cu13/include")]


def no_nvcc(path: Path) -> dict[str, str]:
    """An environment in which it is not found."""
    return {"PATH": str(path), "CUDACXX": "", "CUDA_HOME": "/absent", "TENSORRT_INCLUDE_DIR": headers()[0]}


def test_what_is_missing_is_named(without: Path) -> None:
    environment = no_nvcc(without)
    (without / "g++").unlink()
    done = run("--no-kernels", **environment)
    assert done.returncode == 2
    assert done.stderr.endswith("g++ is not found: apt install g++, and run this again\n")
    (without / "cmake").unlink()
    done = run("--no-kernels", **environment)
    assert done.returncode == 2
    assert done.stderr.endswith(
        "cmake is not found: apt install cmake, or pip install cmake, and run this again\n"
    )


def test_bad_arguments(tmp_path: Path) -> None:
    for arguments, said in [
        (("--fast",), "there is no option --fast; --help lists them"),
        (("--output",), "--output needs a value"),
        (("--tensorrt-include", "nowhere"), f"there is no NvInferRuntime.h in {tmp_path}/nowhere"),
    ]:
        done = run(*arguments, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == f"build_plugin: {said}\n"
    done = run("--help")
    assert done.returncode == 0
    assert "--no-kernels" in done.stdout


def test_what_does_not_compile_is_shown(tmp_path: Path) -> None:
    folder = tmp_path / "include"
    shutil.copytree(headers()[0], folder)
    (folder / "NvInferRuntime.h").write_text("#error no such thing\n")
    done = run("--no-kernels", "--tensorrt-include", folder, "--output", tmp_path / "a.so")
    assert (done.returncode, done.stdout) == (2, "")
    assert "#error no such thing" in done.stderr
    assert "the plugin library does not build; all of it is in .cache/plugin/work-host.log" in done.stderr
    assert not (tmp_path / "a.so").exists()
