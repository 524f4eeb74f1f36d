"""Tables for a terminal."""

from __future__ import annotations

from bnfold.report.table import WIDEST, table


def test_columns_are_aligned_and_only_the_last_is_never_cut() -> None:
    long = "x" * (WIDEST + 5)
    assert list(table([("a", "bb", "c"), ("long one", "", long), (long, "two\nlines", "")])) == [
        f"a{' ' * (WIDEST - 1)}  bb          c",
        f"{'-' * WIDEST}  {'-' * 10}  {'-' * 12}",
        f"long one{' ' * (WIDEST - 8)}              {long}",
        f"{'x' * (WIDEST - 1)}…  two\\nlines",
    ]


def test_a_heading_alone() -> None:
    assert list(table([("a", "b")])) == ["a  b", "-  ------------"]
