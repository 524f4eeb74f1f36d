"""Text for a terminal: tables, lists that are cut, counts; and how wide all of it may be."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

__all__ = ["WIDTH", "counted", "first", "fitted", "shortened", "table"]

WIDTH: ContextVar[int | None] = ContextVar("WIDTH", default=None)  # of the terminal; None: no limit
RULE = 12  # dashes below the heading of the last column
NARROW, NARROWEST, LAST = 10, 6, 24  # what is left of a column, and of the last one


def table(rows: Iterable[Sequence[str]], right: Collection[int] = (), *, ruled: bool = True) -> Iterator[str]:
    """Lines of aligned columns; the first row is the heading. They are as wide as their cells, or as `WIDTH`:
    long cells are shortened then, and the last column is continued in lines of its own.

    right: columns that are aligned to the right. ruled: whether a line of dashes follows the heading.
    """
    rows = [tuple(cell.replace("\n", "\\n") for cell in row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    last, limit = len(widths) - 1, WIDTH.get()
    if limit is not None:
        widths = _narrowed(widths, rows[0], limit)
    for i, row in enumerate(rows):
        cells = enumerate(map(_middle, row[:last], widths))
        begin = "".join(f"{cell:{'>' if at in right else '<'}{widths[at]}}  " for at, cell in cells)
        end = row[last]
        for part in _lines(end, widths[last]) if len(end) > widths[last] else [end]:
            yield (begin + (f"{part:>{widths[last]}}" if last in right else part)).rstrip()
            begin = " " * len(begin)
        if ruled and i == 0:
            rule = RULE if limit is None else min(RULE, widths[last])
            rules = [*widths[:last], widths[last] if last in right else rule]
            yield "  ".join("-" * width for width in rules)


def _narrowed(widths: Sequence[int], heading: Sequence[str], limit: int) -> list[int]:
    """Widths that fit into a line. The widest column gives first, as far as its heading; then the last one,
    whose text goes on; headings are cut where nothing else helps.
    """
    widths, gaps, last = list(widths), 2 * (len(widths) - 1), len(widths) - 1
    words = [max(len(word), NARROW) for word in heading]
    for least in (
        [*words[:last], max(words[last], LAST)],
        [*words[:last], NARROW],
        [NARROWEST] * len(widths),
    ):
        while sum(widths) + gaps > limit:
            at = max(range(len(widths)), key=lambda i: (widths[i] > least[i], widths[i]))
            if widths[at] <= least[at]:
                break
            widths[at] -= 1
    return widths


def _middle(text: str, width: int) -> str:
    """A text of at most that many characters: the names of nodes differ at both ends."""
    return text if len(text) <= width else f"{text[: (width - 1) // 2]}…{text[len(text) - width // 2 :]}"


def _lines(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, max(width, 1), break_on_hyphens=False) or [""]


def fitted(text: str, width: int) -> str:
    """A text with its long lines continued in the next ones, which are indented."""
    lines = []
    for line in text.split("\n"):
        if len(line) <= width:
            lines.append(line)
            continue
        indent = " " * min(len(line) - len(line.lstrip()) + 4, width // 2)
        lines += textwrap.wrap(line, width, subsequent_indent=indent, break_on_hyphens=False)
    return "\n".join(lines)


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
