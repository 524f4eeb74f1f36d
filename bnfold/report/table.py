"""Tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

__all__ = ["table"]

WIDEST = 48  # a cell; a longer one is cut


def table(rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Lines of aligned columns; the first row is the heading, and the last column is never cut."""
    rows = [tuple(cell.replace("\n", "\\n") for cell in row) for row in rows]
    widths = [min(WIDEST, max(map(len, column))) for column in zip(*rows, strict=True)][:-1]
    for i, row in enumerate(rows):
        cells = [_cut(cell, width).ljust(width) for cell, width in zip(row, widths, strict=False)]
        yield "  ".join([*cells, row[-1]]).rstrip()
        if i == 0:
            yield "  ".join("-" * width for width in [*widths, 12])


def _cut(cell: str, width: int) -> str:
    return cell if len(cell) <= width else cell[: width - 1] + "…"
