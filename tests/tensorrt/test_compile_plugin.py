"""The plugin library of an installed bnfold: what compiles it, where it is kept, what errors say."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bnfold.errors import UsageError
from bnfold.tensorrt import compile_plugin as module
from bnfold.tensorrt.compile_plugin import compile_plugin, kept

NVCC = "#!/bin/sh\nprintf 'compute_75\\ncompute_80\\ncompute_90\\n'\n"
# A CMake that notes how it is called, and makes a library of nothing: `cmake --build FOLDER --parallel`.
CMAKE = '#!/bin/sh\necho "$@" >>"$NOTES"\n[ "$1" != --build ] || echo made >"$2/libbnfold_plugin.so"\n'


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with tools that are made up, which is the PATH, and with headers; nothing else is found."""
    for name, text in {"cmake": CMAKE, "g++": "#!/bin/sh\n", "nvcc": NVCC}.items():
        tool = tmp_path / "bin" / name
        tool.parent.mkdir(exist_ok=True)
        tool.write_text(text)
        tool.chmod(0o755)
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / module.HEADER).touch()
    for name in ("CXX", "CUDACXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "absent"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TENSORRT_INCLUDE_DIR", str(tmp_path / "include"))
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    monkeypatch.setattr("sys.executable", str(tmp_path / "absent" / "python"))
    return tmp_path


def wrong() -> str:
    with pytest.raises(UsageError) as caught:
        compile_plugin()
    return str(caught.value)


def test_it_is_compiled_once(tools: Path) -> None:
    made = compile_plugin()
    assert made == kept()
    assert made.read_text() == "made\n"
    assert tools / "cache" / "bnfold" / "plugin" in made.parents
    configure, build = (tools / "notes").read_text().splitlines()
    assert f"-S {module.SOURCES[0]} " in configure
    assert f"-DTENSORRT_INCLUDE_DIR={tools / 'include'}" in configure
    assert configure.endswith("-DCMAKE_CUDA_ARCHITECTURES=75-real;80-real;90")
    assert build.startswith("--build ")
    assert os.listdir(made.parent) == [made.name]
    (tools / "bin" / "cmake").unlink()
    assert compile_plugin() == made


def test_other_sources_are_another_library(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tools / "sources"
    folder.mkdir()
    (folder / "a.cpp").write_text("a")
    monkeypatch.setattr(module, "SOURCES", (folder,))
    before = kept()
    (folder / "a.cpp").write_text("b")
    assert kept() != before


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("cmake", "apt install cmake, or pip install cmake"),
        ("g++", "apt install g++"),
        ("nvcc", "install the CUDA toolkit, or set CUDACXX"),
    ],
)
def test_a_tool_that_is_missing_is_named(tools: Path, name: str, cure: str) -> None:
    (tools / "bin" / name).unlink()
    assert wrong() == f"the plugin library cannot be built: {name} is not found: {cure}"


def test_headers_that_are_missing_are_named(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tools / "include" / module.HEADER).unlink()
    assert f"(no NvInferRuntime.h in {tools / 'include'}): apt install libnvinfer-headers-dev, or" in wrong()
    monkeypatch.delenv("TENSORRT_INCLUDE_DIR")
    monkeypatch.setattr(module, "INCLUDES", (str(tools), str(tools / "include")))
    assert f"(no NvInferRuntime.h in {tools}, {tools / 'include'}): " in wrong()


def test_what_does_not_compile_is_shown(tools: Path) -> None:
    (tools / "bin" / "cmake").write_text("#!/bin/sh\necho fine\necho 'a.cpp: error: no such thing'\nexit 1\n")
    log = kept().parent / "build.log"
    assert wrong() == (
        f"the plugin library does not build: a.cpp: error: no such thing (all of it is in {log})"
    )
    assert "fine" in log.read_text()
    assert os.listdir(log.parent) == [log.name]
