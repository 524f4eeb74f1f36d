"""tools/stacks: its pins, what it says of an absent stack, and what it has stored."""

from __future__ import annotations

import json
import re
import runpy
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import onnx
import onnx.parser
import pytest
import torch
from torch import nn

from bnfold.integrations.stack import TESTED
from tools._common import RESULTS, ROOT
from tools._peers.left import inspect
from tools._stacks import recipe, recipes, recipes_table, stacks, stacks_table
from tools._stacks.timing import INSTANCES, LEAST, interleaved, interval
from tools._stacks.verdict import complaints

SETUP = ROOT / "tools" / "_setup"
STORED = json.loads((RESULTS / "stacks.json").read_text())


def ways() -> dict[str, dict[str, object]]:
    """Of a network in a stack, as they should be."""
    right = {"seconds": 1.0, "per_channel": 0, "error": 1e-6, "decibels": 120.0, "milliseconds": 1.0}
    return {"without": {**right, "batch_norms": 17}, "bnfold": {**right, "batch_norms": 0}}


def pins(name: str) -> dict[str, str]:
    text = (SETUP / f"stack-{name}.txt").read_text()
    lines = [line for line in text.splitlines() if line]
    found = dict(re.fullmatch(r"([\w.-]+)==(\S+)", line).groups() for line in lines)  # type: ignore[union-attr]
    assert len(found) == len(lines)
    return found


def test_the_versions_that_are_installed_are_those_that_were_tested() -> None:
    common = (ROOT / "constraints.txt").read_text()
    for stack in stacks.STACKS.values():
        if stack.environment:
            assert pins(stack.environment)[stack.package] == TESTED[stack.package]
        else:
            assert re.search(rf"^{stack.package}=={TESTED[stack.package]}(;|$)", common, re.MULTILINE)
    environments = {path.stem.removeprefix("stack-") for path in SETUP.glob("stack-*.txt")}
    assert environments == {stack.environment for stack in stacks.STACKS.values()} - {""} | {"recipes"}


def test_the_script_makes_each_environment() -> None:
    """But for that of the recipes, which `tools/stacks --recipes` makes alone."""
    names = re.search(r'names="([\w ]+)"', (ROOT / "tools" / "stacks").read_text())
    assert names is not None
    assert set(names[1].split()) == {stack.environment for stack in stacks.STACKS.values()} - {""}


def test_each_recipe_is_pinned_and_has_a_file() -> None:
    pinned = pins("recipes") | dict(
        line.split("==") for line in (ROOT / "constraints-bench.txt").read_text().splitlines() if "==" in line
    )
    for name, (package, version) in recipes.RECIPES.items():
        assert pinned[package] == version
        assert "# the line more" in (recipe.RECIPES / f"{name}.py").read_text()
    assert {path.stem for path in recipe.RECIPES.glob("for_*.py")} == set(recipes.RECIPES)


def test_the_recipes_that_were_run_gain_what_the_table_says() -> None:
    """The check has passed, nothing is more than it was, and no batch norm is left."""
    found = json.loads((RESULTS / "recipes.json").read_text())
    assert set(found) == set(recipes.RECIPES)
    for name, ran in found.items():
        assert ran["version"] == recipes.RECIPES[name][1]
        for network in ran["networks"].values():
            assert network["check"] in ("passed", "nothing to check")
            assert network["after"]["batch_norms"] == 0
            assert network["after"]["per_channel"] <= network["before"]["per_channel"]
    assert len(list(recipes_table.rows(found))) == sum(len(ran["networks"]) for ran in found.values())


def test_random_weights_reach_the_batch_norms_of_every_library() -> None:
    norm = nn.BatchNorm2d(4)
    trained = runpy.run_path(str(recipe.RECIPES / "weights.py"))["trained"]
    assert not trained(nn.Sequential(norm)).training
    assert norm.running_mean is not None
    for each in (norm.running_mean, norm.bias):
        assert torch.unique(each).numel() == 4
    assert (norm.weight > 0).all()


def test_a_run_that_was_stopped_goes_on_with_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ran: list[str] = []

    def measured(kind: stacks.Stack, arguments: list[str], timeout: float) -> tuple[dict[str, object], str]:
        ran.append(arguments[0])
        return ways(), ""

    stored = {
        "openvino": {"levit_128s": {"version": "1", "ways": {}}, "repvgg_a0": {"version": "0", "ways": {}}}
    }
    (tmp_path / "stacks.json").write_text(json.dumps(stored))
    monkeypatch.setattr(stacks, "RESULT", tmp_path / "stacks.json")
    monkeypatch.setattr(stacks, "installed", lambda stack: "1")
    monkeypatch.setattr(stacks, "measured", measured)
    monkeypatch.setattr(
        "sys.argv",
        ["stacks", "openvino", "--missing", "--networks", "levit_128s", "repvgg_a0", "densenet121"],
    )
    with pytest.raises(SystemExit, match="0"):
        stacks.main()
    assert ran == ["repvgg_a0", "densenet121"]


@pytest.mark.parametrize(
    ("tool", "name", "tested"),
    [(stacks, "openvino", f"openvino {TESTED['openvino']}"), (recipes, "for_keras", "keras 3.15.1")],
)
def test_what_is_absent_is_a_line_and_a_status(
    tool: ModuleType,
    name: str,
    tested: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(tool, "RESULT", tmp_path / "results.json")
    monkeypatch.setattr(stacks, "ROOT", tmp_path)  # where no environment is
    monkeypatch.setattr("sys.argv", ["stacks", name])
    with pytest.raises(SystemExit, match="1"):
        tool.main()
    assert capsys.readouterr().err == f"{name}: not installed; tested with {tested}\n"


@pytest.mark.parametrize("stack", STORED)
def test_what_is_stored_shows_what_is_claimed(stack: str) -> None:
    """Fewer batch norms with bnfold than without, float results as exact, and nothing slower."""
    assert stack in stacks.STACKS
    for network, found in STORED[stack].items():
        assert network in stacks.NETWORKS + stacks.MORE
        assert found["version"] == TESTED[stacks.STACKS[stack].package]
        assert list(complaints(found["ways"])) == [], network


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, []),
        ({"batch_norms": 17}, ["bnfold: 17 are left, without it 17"]),
        ({"per_channel": 18}, ["bnfold: 18 are left, without it 17"]),
        ({"error": 1e-4}, ["bnfold: the error is 1.0e-04, without it 1.0e-06"]),
        (
            {"error": 0.5, "decibels": 99.0},
            ["bnfold: the error is 5.0e-01, ", "bnfold: 99.0 dB, without it 120.0"],
        ),
        (
            {"ratio": {"median": 1.05, "low": 1.031, "high": 1.07}},
            ["bnfold: takes 1.031 to 1.070 times"],
        ),
        ({"ratio": {"median": 1.05, "low": 1.029, "high": 1.07}}, []),
    ],
)
def test_what_is_wrong_is_said(changed: dict[str, object], said: list[str]) -> None:
    found = ways()
    found["bnfold"] |= changed
    lines = list(complaints(found))
    assert len(lines) == len(said)
    assert all(line.startswith(words) for line, words in zip(lines, said, strict=True))


def test_a_way_that_goes_wrong_is_a_line_and_a_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """What was measured is kept all the same. All networks of a run have one folder for what they share."""
    folders = set[str]()

    def measured(kind: stacks.Stack, arguments: list[str], timeout: float) -> tuple[dict[str, object], str]:
        folders.add(arguments[1])
        return ways() | {"bnfold": ways()["without"]}, ""

    monkeypatch.setattr(stacks, "RESULT", tmp_path / "stacks.json")
    monkeypatch.setattr(stacks, "installed", lambda stack: "1")
    monkeypatch.setattr(stacks, "measured", measured)
    monkeypatch.setattr("sys.argv", ["stacks", "openvino", "nncf", "--networks", "levit_128s"])
    with pytest.raises(SystemExit, match="1"):
        stacks.main()
    words = "1, levit_128s: bnfold: 17 are left, without it 17\n"
    assert capsys.readouterr().err == f"openvino {words}nncf {words}"
    assert set(json.loads((tmp_path / "stacks.json").read_text())) == {"openvino", "nncf"}
    assert len(folders) == 1
    assert not Path(*folders).exists()


def test_a_median_lies_between_two_of_what_was_measured() -> None:
    assert interval([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)
    assert interval([float(n) for n in range(100)]) == (49.5, 40.0, 59.0)


@pytest.mark.parametrize(("noise", "turns"), [(0.0, LEAST), (0.5, 1000)])
def test_rounds_go_on_until_the_ratios_are_close_or_the_time_is_over(noise: float, turns: int) -> None:
    """A ratio is that of one round, whatever else the machine does; the instances of a way take turns."""
    now, called = [0.0], list[tuple[str, int]]()

    def run(way: str, number: int, seconds: float) -> Callable[[float], None]:
        def one(_: float) -> None:
            busy = 1 + len(called) // 2 % 7  # in this round
            called.append((way, number))
            now[0] += seconds * busy * (1 + noise * (len(called) % 4))

        return one

    lasting = {"without": 0.010, "bnfold": 0.008}
    runs = {way: [run(way, n, taken) for n in range(INSTANCES)] for way, taken in lasting.items()}
    found = interleaved(runs, {"bnfold": "without"}, 0.0, clock=lambda: now[0])
    assert "ratio" not in found["without"]
    rounds = found["bnfold"]["rounds"]
    assert rounds == turns if not noise else LEAST < rounds < turns
    assert Counter(called) == {(way, n): rounds // INSTANCES for way in runs for n in range(INSTANCES)}
    if not noise:
        assert found["bnfold"]["ratio"] == pytest.approx({"median": 0.8, "low": 0.8, "high": 0.8})
        assert found["without"]["milliseconds"] > found["bnfold"]["milliseconds"]


def test_every_way_is_a_row() -> None:
    rows = list(stacks_table.rows(STORED))
    assert len(rows) == sum(len(found["ways"]) for each in STORED.values() for found in each.values())
    assert {len(row) for row in rows} == {len(stacks_table.HEADINGS)}


def test_the_bias_of_an_integer_product_is_no_batch_norm(tmp_path: Path) -> None:
    """Such a product has none of its own: the Cast, Mul and Add behind it are needed anyway."""
    text = """<ir_version: 8, opset_import: ["" : 17]> net (uint8[2, 3] x) => (float[2, 4] y)
    <int8[3, 4] weight = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, float scale = {0.5},
     float[4] bias = {1, 2, 3, 4}> {
        product = MatMulInteger(x, weight)  wide = Cast<to: int = 1>(product)
        scaled = Mul(wide, scale)  y = Add(scaled, bias)
    }"""
    path = tmp_path / "net.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    assert inspect(path) == (0, frozenset())
