"""What the documentation shows is what happens: its commands and programs are run, its tables measured."""

from __future__ import annotations

import atexit
import contextlib
import functools
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from docs import tables
from examples import make
from examples.make import picture
from tools._docs.blocks import Block, blocks_of, commands_of, missing, printed_by

ROOT = Path(__file__).resolve().parent.parent
FOR_DEVELOPERS = [ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md"]
PAGES = [ROOT / "README.md", *FOR_DEVELOPERS, *sorted((ROOT / "docs").glob("*.md"))]
PICTURE = ROOT / "docs" / "before-after.svg"

# Why a block is not run, and how many there are of each kind.
MARKED = {"slow": 5, "needs-install": 11, "measured": 1, "a workflow of Olive": 1}
LANGUAGES = {"console", "python", "json", "mermaid"}


@functools.cache
def made() -> Path:
    """A folder with the files of `examples/make.py`."""
    folder = Path(tempfile.mkdtemp(prefix="bnfold-docs-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    make.make(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the examples speak of, to work in; `bnfold` is a command there."""
    shutil.copytree(made(), tmp_path, dirs_exist_ok=True)
    commands = tmp_path / ".bin"
    commands.mkdir()
    for name, module in (("bnfold", "-m bnfold "), ("python", "")):
        command = commands / name
        command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {module}"$@"\n')
        command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


# the blocks of the pages


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def blocks(language: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == language and not block.marker]


def compare(block: Block, command: str, wanted: list[str], output: str) -> None:
    """Every line that is shown occurs in the output, in this order."""
    line = missing(wanted, output)
    assert not line, f"{block}: `{command}` does not print\n{line}\nbut\n{output}"


def test_every_block_is_run_or_says_why_not() -> None:
    fences = sum(page.read_text(encoding="utf-8").count("\n```") for page in PAGES)
    assert fences == 2 * len(BLOCKS), "a block that is not closed, or not seen"
    assert {block.language for block in BLOCKS} == LANGUAGES
    assert Counter(block.marker for block in BLOCKS if block.marker) == MARKED
    assert blocks("console")
    assert blocks("python")


@pytest.mark.skipif(shutil.which("bash") is None, reason="the examples are written for bash")
@pytest.mark.parametrize("block", blocks("console"), ids=str)
def test_commands(block: Block, folder: Path) -> None:
    if "bnfold build" in block.text:
        pytest.importorskip(
            "tensorrt_rtx", reason="engines are built by tensorrt-rtx, which is not installed"
        )
    status = 0
    for command, wanted in commands_of(block):
        line = f"(exit {status}); {command}"  # so that `echo $?` shows what a reader would see
        done = subprocess.run(
            ["bash", "-c", line], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        status = done.returncode
        compare(block, command, wanted, done.stdout)
        assert "Traceback" not in done.stdout


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_programs(block: Block, folder: Path) -> None:
    """They run, and print what the comments behind (and right below) their `print` calls say."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(block.text, str(block), "exec"), {"__name__": "example"})
    compare(block, "the program", printed_by(block.text), output.getvalue())


@pytest.mark.parametrize("block", blocks("json"), ids=str)
def test_the_json_report_is_the_one_of_the_picture(block: Block, folder: Path) -> None:
    import bnfold

    def plain(value: Any) -> Any:
        """Without measured numbers and versions."""
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list):
            return [plain(item) for item in value]
        measured = isinstance(value, float) or str(value).startswith("onnxruntime ")
        return "measured" if measured else value

    _, report = bnfold.fold_onnx("model.onnx", check="both")
    assert plain(json.loads(block.text)) == plain(json.loads(report.to_json()))
    page = block.page.read_text(encoding="utf-8")
    keys = set(re.findall(r'"(\w+)":', report.to_json()))
    assert {key for key in keys if f"`{key}`" not in page} == set()


def test_the_readme_is_read_in_three_minutes() -> None:
    assert (ROOT / "README.md").read_text(encoding="utf-8").count("\n") <= 200


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if not target.startswith("https://"):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_launch_table_is_that_of_the_kernels() -> None:
    from bnfold.kernels import launch

    def means(row: launch.Row) -> str:
        return " ".join((row.ranks.__doc__ or "").split())

    layouts = []
    for text, read in launch.LAYOUTS:
        where, how = text.split(": ")
        found = read(launch.Problem("forward", ("float", "float"), 1, 1, 1))
        unit = "16 bytes" if found.width > 1 else "a value"
        layouts.append(f"| `{found.layout}` | {unit} | {where} | {how} |\n")
    rows = [f"| {row.name} | `{row.exchange}` | {means(row)} |\n" for row in launch.ROWS]
    stream = [f"| {launch.STREAM.name} | {means(launch.STREAM)} |\n"]
    page = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
    for table in (layouts, rows, stream):
        assert "|\n" + "".join(table) + "\n" in page


# the picture


def drawn(side: str) -> tuple[int, Counter[str]]:
    """The number in the heading of the left or right half, and the nodes that it shows."""
    texts = [e for e in ET.parse(PICTURE).iter() if e.tag.endswith("}text")]
    words = [("".join(e.itertext()), float(e.get("x", 0))) for e in texts]
    half = [word for word, x in words if (x < 360) == (side == "before") and x != 360]
    heading = next(word for word in half if word.startswith(f"{side}: "))
    nodes = Counter(word.split()[0] for word in half if not word.startswith(side) and word != "x")
    return int(re.findall(r"\d+", heading)[0]), nodes


def listed(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type.replace("BatchNormalization", "BatchNorm") for node in model.graph.node)


def test_the_picture_is_true() -> None:
    import bnfold

    model = picture()
    folded, report = bnfold.fold_onnx(model)
    for side, graph in (("before", model), ("after", folded)):
        count, nodes = drawn(side)
        assert nodes == listed(graph)
        assert count == nodes.total()
    assert [(e.name, e.outcome, e.into) for e in report.entries] == [
        ("bn1", "folded", ("conv1", "conv2")),
        ("bn2", "folded", ("conv3",)),
    ]
    assert report.verification.ok

    # what its captions say
    old, new = (
        {t.name: numpy_helper.to_array(t).astype(np.float64) for t in m.graph.initializer}
        for m in (model, folded)
    )
    scales, shifts = [], []
    for name in ("bn1", "bn2"):
        scales.append(old[f"{name}.scale"] / np.sqrt(old[f"{name}.var"] + 1e-5))
        shifts.append(old[f"{name}.bias"] - scales[-1] * old[f"{name}.mean"])
    expected = {
        "conv1.weight": old["conv1.weight"] * scales[0][:, None, None, None],
        "conv1.bias": old["conv1.bias"] * scales[0],
        "conv2.weight": old["conv2.weight"],
        "conv2.bias": old["conv2.bias"] + shifts[0],
        "conv3.weight": old["conv3.weight"] * scales[1][:, None, None],
        "conv3.bias": old["conv3.bias"] + np.einsum("oihw,i->o", old["conv3.weight"], shifts[1]),
    }
    assert set(new) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(new[name], value, rtol=1e-6, atol=1e-6)


def test_the_tables_are_those_of_the_results() -> None:
    for page in tables.PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        assert text == tables.renewed(page), f"{page}: run `python -m docs.tables`"


@pytest.mark.parametrize("page", FOR_DEVELOPERS, ids=lambda page: page.name)
def test_what_the_pages_for_developers_name_is_there(page: Path) -> None:
    """Files and folders by any end of their path; what is to come is a room of the contracts."""
    rooms = [ROOT / name for name in ("bnfold", "tests", "tools", "docs", "bench", "examples", "plugins")]
    known = [f"/{path.relative_to(ROOT)}" for room in rooms for path in (room, *room.rglob("*"))]
    known += [f"/{path.name}" for path in ROOT.iterdir()]
    named = re.findall(r"`([\w./*]+(?:/|\.(?:py|md|cuh|txt)))`", page.read_text(encoding="utf-8"))
    assert len(named) > 10
    for name in dict.fromkeys(named):
        pattern = re.escape(name.rstrip("/")).replace(r"\*", ".*").replace("NAME", ".*")
        assert name in COMING or any(re.search(rf"/{pattern}$", path) for path in known), name


COMING = {"proof/"}
