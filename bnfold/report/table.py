"""Text for a terminal: tables, lists that are cut, counts."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

__all__ = ["counted", "first", "shortened", "table"]

WIDEST = 48  # a cell; a longer one is cut
RULE = 12  # below the heading of the last column


def table(
    rows: Iterable[Sequence[str]], right: Collection[int] = (), *, cut: bool = True, ruled: bool = True
) -> Iterator[str]:
    """Lines of aligned columns; the first row is the heading, and the last column is never cut.

    right: columns that are aligned to the right. cut: whether long cells are cut. ruled: whether a line of
    dashes follows the heading.
    """
    rows = [tuple(cell.replace("\n", "\\n") for cell in row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    last = len(widths) - 1
    if cut:
        widths = [*(min(WIDEST, width) for width in widths[:-1]), widths[-1]]
    for i, row in enumerate(rows):
        cells = enumerate(map(shortened, row, widths))
        yield "  ".join(f"{cell:{'>' if at in right else '<'}{widths[at]}}" for at, cell in cells).rstrip()
        if ruled and i == 0:
            yield "  ".join(
                "-" * (RULE if at == last and at not in right else width) for at, width in enumerate(widths)
            )


def first(items: Sequence[Any], count: int) -> str:
    """The first few of many: "a, b and 7 more"."""
    rest = f" and {len(items) - count} more" if len(items) > count else ""
    return ", ".join(map(str, items[:count])) + rest


def counted(number: int, what: str) -> str:
    """A number with its noun: "1 node", "3 nodes"."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def shortened(text: str, width: int) -> str:
    """A text of at most that many characters."""
    return text if len(text) <= width else text[: width - 1] + "…"
