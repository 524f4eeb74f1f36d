"""What people install: the source distribution, the wheel that is made of it, and what they say."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import onnx
import pytest

import bnfold
from examples import make
from tools._docs.as_users import play
from tools._docs.blocks import blocks_of
from tools._docs.users import is_played

ROOT = Path(__file__).resolve().parents[1]
# What git does not know of a checkout, and what tools make in it.
MADE = re.compile(
    r"__pycache__|\.git|\.venv.*|\.cache|build|dist|\.(pytest|mypy|ruff)_cache|\.hypothesis|.*\.egg-info"
)
# Named, since setuptools is the one of this environment: nothing is fetched.
BUILD = """
import os, sys
from setuptools import build_meta
os.chdir(sys.argv[1])
getattr(build_meta, f"build_{sys.argv[2]}")(sys.argv[3])
"""


def checkout_files() -> set[str]:
    """The files of this checkout, but for what tools have made."""
    found = set()
    for path in ROOT.rglob("*") if not (ROOT / ".git").exists() else listed():
        parts = path.relative_to(ROOT).parts
        if path.is_file() and not any(map(MADE.fullmatch, parts)):
            found.add("/".join(parts))
    return found


def listed() -> list[Path]:
    """What git would commit."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in done.stdout.split("\0") if name]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution of a copy of this checkout, unpacked."""
    work = tmp_path_factory.mktemp("sdist")
    for name in checkout_files():
        place = work / "copy" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, place)
    (made,) = built(work / "copy", "sdist", work / "made")
    with tarfile.open(made) as archive:
        archive.extractall(work / "unpacked", filter="data")
    return work / "unpacked" / f"bnfold-{bnfold.__version__}"


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel that is made of the source distribution."""
    (made,) = built(sdist, "wheel", tmp_path_factory.mktemp("wheel"))
    assert made.name == f"bnfold-{bnfold.__version__}-py3-none-any.whl"
    return zipfile.ZipFile(made)


def built(folder: Path, what: str, to: Path) -> list[Path]:
    to.mkdir(exist_ok=True)
    command = [sys.executable, "-c", BUILD, str(folder), what, str(to)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(to.iterdir())


def test_the_source_distribution_has_all_of_the_checkout(sdist: Path) -> None:
    there = {path.relative_to(sdist).as_posix() for path in sdist.rglob("*") if path.is_file()}
    assert sorted(checkout_files() - there) == []
    made = {name for name in there - checkout_files() if not name.startswith("bnfold.egg-info/")}
    assert made <= {"PKG-INFO", "setup.cfg"}  # which an unpacked distribution has already


def test_the_wheel_has_all_of_the_package(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    files = checkout_files()
    wanted = {name for name in files if name.startswith("bnfold/")}
    wanted |= {f"bnfold/{name}" for name in files if name.startswith("plugins/")}
    assert {
        "bnfold/py.typed",
        "bnfold/cli/build.py",
        "bnfold/kernels/forward.cuh",
        "bnfold/plugins/CMakeLists.txt",
    } < wanted
    assert sorted(wanted - names) == []
    info = f"bnfold-{bnfold.__version__}.dist-info/"
    assert [name for name in names - wanted if not name.startswith(info)] == []
    assert f"{info}licenses/LICENSE" in names


def test_the_wheel_runs(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path)
    code = (
        "import bnfold, bnfold.tensorrt.compile_plugin as c; print(bnfold.tensorrt.__file__); print(c.kept())"
    )
    environment = {"PYTHONPATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    home, library = done.stdout.splitlines()
    assert home == str(tmp_path / "bnfold" / "tensorrt" / "__init__.py")
    assert library.startswith(str(tmp_path / "cache"))


def test_the_readme_is_true_of_the_wheel(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """Its first section; tools/as_users plays all pages, each in an environment of its own."""
    wheel.extractall(tmp_path / "wheel")
    commands, work = tmp_path / "bin", tmp_path / "work"
    for folder in (commands, work):
        folder.mkdir()
    for name, module in (("bnfold", "-m bnfold "), ("python", "")):
        (commands / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -P {module}"$@"\n')
        (commands / name).chmod(0o755)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "wheel")}
    environment["PATH"] = f"{commands}{os.pathsep}{environment['PATH']}"
    onnx.save(make.picture(), work / "model.onnx")
    onnx.save(make.stubborn(), work / "stubborn.onnx")
    blocks = [b for b in blocks_of(ROOT / "README.md") if b.section == "Two commands" and is_played(b)]
    assert len(blocks) == 3
    assert [told for block in blocks for told in play(block, work, environment)] == []
    code = "import bnfold; print(bnfold.__file__)"
    ran = subprocess.run(
        [commands / "python", "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert ran.stdout.startswith(str(tmp_path / "wheel"))


def metadata(wheel: zipfile.ZipFile) -> Message:
    return Parser().parsestr(wheel.read(f"bnfold-{bnfold.__version__}.dist-info/METADATA").decode("utf-8"))


def test_what_it_says_of_itself(wheel: zipfile.ZipFile) -> None:
    said = metadata(wheel)
    assert (said["Name"], said["Version"]) == ("bnfold", bnfold.__version__)
    assert said["Author"] == "The bnfold developers"
    assert said["License-Expression"] == "Apache-2.0"
    assert said["Description-Content-Type"] == "text/markdown"
    text = str(said.get_payload())
    assert text.startswith("# bnfold\n")
    elsewhere = re.findall(r"\]\((?!https?:|#)[^)]*\)", text)
    assert elsewhere == [], "an index page has no other files"


def test_of_a_readme_only_the_words_stay() -> None:
    clean = runpy.run_path(str(ROOT / "setup.py"), run_name="setup")["for_an_index"]
    text = (
        "# a\n\n![b\nc](docs/d.svg)\n\n<!-- slow -->\nSee [e `f`](docs/g.md#h), [i](https://j) and [k](#l).\n"
    )
    assert clean(text) == "# a\n\nSee e `f`, [i](https://j) and k.\n"


def test_the_version_is_told_everywhere() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    version, date = (re.search(rf"^{key}: (\S+)$", citation, re.M) for key in ("version", "date-released"))
    assert version is not None
    assert date is not None
    assert version[1] == bnfold.__version__
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.*)$", changes, re.M)
    assert headings[:2] == ["Unreleased", f"{version[1]} - {date[1]}"]
