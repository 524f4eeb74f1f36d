"""tools/stacks: its pins, what it says of an absent stack, and what it has stored."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import onnx
import onnx.parser
import pytest
import torch
from torch import nn

from bnfold.integrations.stack import TESTED
from tools._common import RESULTS, ROOT
from tools._peers.left import inspect
from tools._stacks import recipe, recipes, recipes_table, stacks, stacks_table

SETUP = ROOT / "tools" / "_setup"
STORED = json.loads((RESULTS / "stacks.json").read_text())


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


def test_an_absent_library_is_a_line_and_a_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(recipes, "RESULT", tmp_path / "recipes.json")
    monkeypatch.setattr(stacks, "ROOT", tmp_path)  # where no environment is
    monkeypatch.setattr("sys.argv", ["stacks", "for_keras"])
    with pytest.raises(SystemExit, match="1"):
        recipes.main()
    assert capsys.readouterr().err == "for_keras: not installed; tested with keras 3.15.1\n"


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

    def measured(stack: stacks.Stack, network: str, timeout: float) -> tuple[dict[str, object], str]:
        ran.append(network)
        return {}, ""

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


def test_an_absent_stack_is_a_line_and_a_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(stacks, "RESULT", tmp_path / "stacks.json")
    monkeypatch.setattr(stacks, "ROOT", tmp_path)  # where no environment is
    monkeypatch.setattr("sys.argv", ["stacks", "openvino"])
    with pytest.raises(SystemExit, match="1"):
        stacks.main()
    assert capsys.readouterr().err == f"openvino: not installed; tested with openvino {TESTED['openvino']}\n"


@pytest.mark.parametrize("stack", STORED)
def test_what_is_stored_shows_what_is_claimed(stack: str) -> None:
    """Fewer batch norms with bnfold than without, and float results as exact."""
    assert stack in stacks.STACKS
    for network, found in STORED[stack].items():
        assert network in stacks.NETWORKS + stacks.MORE
        assert found["version"] == TESTED[stacks.STACKS[stack].package]
        without, with_ = (found["ways"][way] for way in ("without", "bnfold"))
        left = [row["batch_norms"] + row["per_channel"] for row in (without, with_)]
        assert left[1] < left[0], network
        if without["error"] < 1e-5:
            assert with_["error"] < 1e-5, network


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
