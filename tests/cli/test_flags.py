"""What the flags accept, what they are made into, and what is refused because it would have no effect."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from bnfold.cli import flags
from bnfold.cli.app import parser
from bnfold.options import Fold
from tests.cli.command import operators, refused, run


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--no-such-flag"], "required"),
        (["melt"], "invalid choice: 'melt'"),
        (["fold"], "required: IN.onnx"),
        (["fold", "in.onnx", "out.onnx", "--no-such-flag"], "unrecognized arguments: --no-such-flag"),
        (["fold", "in.onnx", "out.onnx", "--no-ver"], "unrecognized arguments: --no-ver"),
        (["fold", "in.onnx", "out.onnx", "--check-rtol", "small"], "'small' is not a number"),
        (["fold", "in.onnx", "out.onnx", "--check-rtol", "-1"], "'-1' is not a number"),
        (["fold", "in.onnx", "out.onnx", "--check-atol", "nan"], "'nan' is not a number"),
        (["fold", "in.onnx", "out.onnx", "--overwrite-input-shape", "x:N,3,8,8"], "such as x:1,3,224,224"),
        (["fold", "in.onnx", "out.onnx", "--overwrite-input-shape", "x:1,-3"], "such as x:1,3,224,224"),
        (["fold", "in.onnx", "out.onnx", *["--overwrite-input-shape", "x:1"] * 2], "names one input twice"),
        (["fold", "in.onnx", "out.onnx", "--seed", "1.5"], "not a whole number"),
        (["fold", "in.onnx", "out.onnx", "--shared", "maybe"], "invalid choice: 'maybe'"),
        (["fold", "in.onnx", "out.onnx", "--for", "int3"], "invalid choice: 'int3'"),
        (
            ["fold", "in.onnx", "out.onnx", "--for", "int8", "--no-merge-branches"],
            "--for has nothing to do with --no-merge-branches",
        ),
        (["fold", "in.onnx", "--quiet", "--show", "all"], "--show has nothing to do with --quiet"),
        (["fold", "in.onnx", "--fail-if-kept=few"], "'few' is not a whole number"),
        (["fold", "in.onnx", "--force"], "--force has nothing to do without an output file"),
        (["fold", "in.onnx", "--save-as-external-data"], "nothing to do without an output file"),
        (
            ["fold", "in.onnx", "out.onnx", "--no-verify", "--check-atol", "0"],
            "--check-atol has nothing to do",
        ),
        (["fold", "in.onnx", "out.onnx", "--no-verify", "--seed", "0"], "--seed has nothing to do"),
        (["fold", "in.onnx", "a.onnx", "-o", "b.onnx"], "two outputs are given, a.onnx and b.onnx (-o)"),
        (["fold", "in.onnx", "--seed", "1", "a.onnx", "b.onnx"], "unrecognized arguments: b.onnx"),
        (["fold", "in.onnx", "-o", "a.onnx", "--nothing", "b"], "unrecognized arguments: --nothing b"),
        (["fold", "in.onnx", "-o"], "-o/--output: expected one argument"),
        (["fold", "in.onnx", "-o", "in.onnx"], "in.onnx is the input itself"),
        (["export", "nets:small"], "required: OUT.onnx"),
        (["build", "in.onnx", "-o", "out.onnx"], "out.onnx would be an engine"),
        (["verify", "in.onnx", "in.onnx", "-o", "out.onnx"], "unrecognized arguments: -o out.onnx"),
        (["verify", "in.onnx"], "required: B.onnx"),
        (["verify", "in.onnx", "in.onnx", "--force"], "--force has nothing to do without --json"),
    ],
)
def test_bad_usage(folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str) -> None:
    assert told in refused(capsys, folder, 2, *arguments)


@pytest.mark.parametrize(
    ("text", "value"),
    [("x:1,3,224", ("x", (1, 3, 224))), ("a:b:07", ("a:b", (7,))), ("x:0", None), (":1", None), ("x:", None)],
)
def test_shapes_by_name(text: str, value: Any) -> None:
    read = flags.CHECK["--overwrite-input-shape"]["type"]
    if value is not None:
        assert read(text) == value
    else:
        with pytest.raises(argparse.ArgumentTypeError, match="not an input's name and sizes, such as x:1"):
            read(text)


TAKES = {  # each command that writes a model or an engine, with what else it asks for
    "fold": [],
    "equalize": [],
    "correct": ["--float", "f.onnx", "--input-data-path", "x.npz"],
    "export": ["--input", "1,2"],
    "build": [],
}


@pytest.mark.parametrize("command", TAKES)
@pytest.mark.parametrize("given", ["-o out", "--output out", "--output=out", "-oout", "out"])
def test_the_output_as_people_type_it(command: str, given: str) -> None:
    """By a flag or by its place, in front and behind."""
    rest = TAKES[command]
    orders = [["in", *given.split(), *rest], ["in", *rest, *given.split()]]
    if given != "out":
        orders.append([*given.split(), *rest, "in"])
    for words in orders:
        args, unknown = parser(command).parse_known_args([command, *words])
        assert flags.take_output(args, unknown) == []
        assert (str(args.model), str(args.out)) == ("in", "out")


def test_the_output_is_written_where_the_flag_says(folder: Path) -> None:
    assert run("fold", "-o", "out.onnx", "in.onnx") == 0
    assert run("fold", "in.onnx", "--no-verify", "later.onnx", "--quiet") == 0
    assert operators("out.onnx") == operators("later.onnx") == ["Conv"]


def test_the_fold_has_a_flag_for_each_option() -> None:
    """And without flags the defaults, none of which is written down twice."""
    args = parser().parse_args(["fold", "in.onnx"])
    assert {field.name for field in fields(Fold)} <= set(vars(args))
    assert vars(flags.fold_of(args)) == vars(Fold())


GIVEN = {
    "--skip bn --skip cn": {"skip": ["bn", "cn"]},
    "--shared error": {"shared": "error"},
    "--no-merge-branches": {"merge_branches": False},
    "--lower-batch-statistics": {"lower_batch_statistics": True},
    "--drop-dead-channels --input-range x:0,1 --input-range y:-1,inf": {
        "drop_dead_channels": True,
        "input_ranges": {"x": (0, 1), "y": (-1, float("inf"))},
    },
}
OF_SOME = {
    "--target tensorrt": {"target": "tensorrt"},
    "--precision bf16": {"precision": "bf16"},
    "--freeze-initializers": {"freeze_initializers": True},
}
NOT_OF = {"equalize": ["--target tensorrt", "--precision bf16"], "export": ["--freeze-initializers"]}


@pytest.mark.parametrize(
    "command",
    [["fold", "in.onnx"], ["equalize", "in.onnx"], ["export", "nets:net", "o.onnx", "--input-shape", "1,2"]],
)
def test_all_who_fold_take_the_same_options(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for given, values in {**GIVEN, **OF_SOME}.items():
        if given in NOT_OF.get(command[0], ()):
            with pytest.raises(SystemExit):
                parser().parse_args([*command, *given.split()])
            assert f"unrecognized arguments: {given}" in capsys.readouterr().err
        else:
            options = flags.fold_of(parser().parse_args([*command, *given.split()]))
            assert vars(options) == {**vars(Fold()), **values}
