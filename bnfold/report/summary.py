"""A model before and after, in numbers: operators, parameters, multiplications, bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from bnfold.report.data import Data
from bnfold.report.table import counted, table

__all__ = ["Contents", "File", "Summary", "in_bytes"]

NAMES = 8  # of inputs, and of outputs, that are told


@dataclass
class Contents(Data):
    """What is in one model.

    opset: of the default domain. inputs, outputs: as the command line takes them, "x:1,3,224,224:float32".
    operators: how often each occurs, in bodies too; one of another domain has that before its name.
    parameters: stored numbers. multiplications: of the layers with stored weights, in one run, where a size
    that is open counts as 1; None: not known. bytes: of the file and its data files; None: there is none.
    """

    opset: int = 0
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    operators: dict[str, int] = field(default_factory=dict)
    parameters: int = 0
    multiplications: int | None = None
    bytes: int | None = None

    @property
    def nodes(self) -> int:
        """All operators together."""
        return sum(self.operators.values())


class File(NamedTuple):
    """A file that was written."""

    path: str
    bytes: int


@dataclass
class Summary(Data):
    """A model before and after, and the files of the one after."""

    before: Contents
    after: Contents
    files: list[File] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """A few lines, and a table."""
        a, b = self.before, self.after
        yield f"opset {_both(str(a.opset), str(b.opset))}"
        for what in ("inputs", "outputs"):
            yield f"{what} {_both(_some(getattr(a, what)), _some(getattr(b, what)))}"
        rows = [("", "before", "after"), ("operators", f"{a.nodes:,}", f"{b.nodes:,}")]
        counts = a.operators | {name: 0 for name in b.operators if name not in a.operators}
        rows += [
            (f"  {name}", f"{a.operators.get(name, 0):,}", f"{b.operators.get(name, 0):,}") for name in counts
        ]
        rows += [(what, _number(getattr(a, what)), _number(getattr(b, what))) for what in ("parameters",)]
        rows.append(("multiplications", _number(a.multiplications), _number(b.multiplications)))
        if a.bytes is not None:
            rows.append(("bytes", in_bytes(a.bytes), "" if b.bytes is None else in_bytes(b.bytes)))
        yield from table(rows, right=(1, 2), ruled=False)


def _both(before: str, after: str) -> str:
    return before if before == after else f"{before} -> {after}"


def _some(names: list[str]) -> str:
    more = f" and {counted(len(names) - NAMES, 'more')}" if len(names) > NAMES else ""
    return "  ".join(names[:NAMES]) + more


def _number(count: int | None) -> str:
    return "?" if count is None else f"{count:,}"


def in_bytes(count: float) -> str:
    """A number of bytes in the unit that fits."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.3g} {unit}"
