"""Tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bnfold.report.table import WIDTH, fitted, table

LONG = "/backbone/stages.3/blocks.17/bn/BatchNormalization"


@pytest.fixture
def narrow() -> Iterator[None]:
    """A terminal of 60 columns."""
    token = WIDTH.set(60)
    yield
    WIDTH.reset(token)


def test_columns_are_aligned_and_nothing_is_cut() -> None:
    wide = len(LONG)
    assert list(table([("a", "bb", "c"), ("long one", "", LONG), (LONG, "two\nlines", "")])) == [
        f"a{' ' * (wide - 1)}  bb          c",
        f"{'-' * wide}  {'-' * 10}  {'-' * 12}",
        f"long one{' ' * (wide - 8)}              {LONG}",
        f"{LONG}  two\\nlines",
    ]


def test_on_a_terminal_it_is_as_wide_as_that(narrow: None) -> None:
    text = "its windows see zero padding, which cannot be shifted"
    lines = list(table([("name", "op", "why"), (LONG, "Mul", text), ("bn", "Mul", LONG)]))
    assert max(map(len, lines)) <= 60
    assert lines[2].startswith(LONG[:10])  # both ends of a name are left
    assert lines[2].split("  ")[0].endswith(LONG[-10:])
    at = lines[0].index("why")
    assert " ".join(line[at:] for line in lines[2:5]) == text  # the last column goes on
    assert "".join(line[at:] for line in lines[5:]) == LONG


def test_headings_are_cut_last(narrow: None) -> None:
    head = ("layer", "operator", "outputs", "parameters", "multiplications", "moved into its bias")
    lines = list(table([head, ("conv", "Conv", "-2", "-56", "-13,824", "")]))
    assert max(map(len, lines)) <= 60
    lines = list(table([head[:5], (LONG, "Conv", "-2", "-56", "-13,824")]))
    assert all(word in lines[0] for word in head[:5])


def test_numbers_stay_aligned_to_the_right(narrow: None) -> None:
    lines = list(table([("output", "error"), (LONG * 2, "1.5"), ("y", "12.25")], right=(1,), ruled=False))
    assert [len(line) for line in lines] == [60] * 3


def test_a_heading_alone() -> None:
    assert list(table([("a", "b")])) == ["a  b", "-  ------------"]


def test_long_lines_go_on_indented() -> None:
    text = f"short\n  kept: {LONG}: {LONG}\n{'x' * 50}"
    lines = fitted(text, 40).split("\n")
    assert max(map(len, lines)) <= 40
    assert lines[0] == "short"
    assert [line[: len(line) - len(line.lstrip())] for line in lines[1:4]] == ["  ", "      ", "      "]
    assert "".join(text.split()) == "".join("".join(lines).split())
