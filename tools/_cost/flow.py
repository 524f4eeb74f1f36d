"""The control flow of a kernel: loops, as they lie in each other, and the cheapest way through one.

The assembler lays code out in order: an edge backward ends a turn of a loop, everything else goes forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from tools._cost.sass import Instruction

Key = tuple[int, ...]


@dataclass(frozen=True)
class Loop:
    """The instructions first ... last; `inner` are the loops within, without those within these."""

    first: int
    last: int
    depth: int
    inner: tuple[Loop, ...] = field(default=(), repr=False)

    def holds(self, other: Loop) -> bool:
        return self.first <= other.first and other.last <= self.last

    def all(self) -> Iterator[Loop]:
        """This one and all within."""
        yield self
        for loop in self.inner:
            yield from loop.all()


def loops(code: Sequence[Instruction]) -> tuple[Loop, ...]:
    """The outermost loops, in order."""
    ends: dict[int, int] = {}
    for i in sorted(reached(code)):
        target = code[i].target
        if target is not None and target <= i and "DIV" not in code[i].qualifiers:
            ends[target] = max(i, ends.get(target, i))
    spans = sorted(ends.items(), key=lambda span: (span[0], -span[1]))
    return _nested(spans, 0)


def _nested(spans: Sequence[tuple[int, int]], depth: int) -> tuple[Loop, ...]:
    found, rest = [], list(spans)
    while rest:
        first, last = rest.pop(0)
        within = [span for span in rest if span[0] <= last]
        rest = rest[len(within) :]
        last = max([last, *(end for _, end in within)])
        found.append(Loop(first, last, depth, _nested(within, depth + 1)))
    return tuple(found)


def reached(code: Sequence[Instruction]) -> set[int]:
    """The instructions that may run: without slow paths, which are called, or lie apart for divergent
    warps.
    """
    found: set[int] = set()
    todo = [0]
    while todo:
        i = todo.pop()
        if i in found or i >= len(code):
            continue
        found.add(i)
        each = code[i]
        if each.target is not None and "DIV" not in each.qualifiers:
            todo.append(each.target)
        if not each.ends and not each.leaves:
            todo.append(i + 1)
    return found


@dataclass(frozen=True)
class Block:
    """Instructions without a branch but the last: first ... last; `next` are the blocks that may follow."""

    first: int
    last: int
    next: tuple[int, ...]


def blocks(code: Sequence[Instruction], first: int, last: int) -> list[Block]:
    """Those of a range, by the edges that go forward in it. An edge out of the range is left out."""
    starts = {first}
    for i in range(first, last + 1):
        if code[i].target is not None or code[i].ends:
            starts.add(i + 1)
            if code[i].target is not None:
                starts.add(code[i].target or 0)
    order = sorted(start for start in starts if first <= start <= last)
    found = []
    for start, after in zip(order, [*order[1:], last + 1], strict=True):
        end = code[after - 1]
        following = [] if end.ends or end.leaves else [after]
        if end.target is not None:
            following.append(end.target)
        ahead = tuple(dict.fromkeys(i for i in following if start < i <= last + 1))
        found.append(Block(start, after - 1, ahead))
    return found


def ahead(span: Sequence[Block], first: int) -> set[int]:
    """The blocks, by their first instructions, on all ways on from one of them."""
    following = {block.first: block.next for block in span}
    found: set[int] = set()
    todo = [first]
    while todo:
        here = todo.pop()
        if here not in found and here in following:
            found.add(here)
            todo += following[here]
    return found


def passed(span: Sequence[Block], first: int, last: int) -> set[int]:
    """Those on all ways from one to the other."""
    following = {block.first: block.next for block in span}
    found = {last}
    for block in sorted(ahead(span, first), reverse=True):
        if found & {*following[block]}:
            found.add(block)
    return found


def around(span: Sequence[Block], here: int) -> tuple[list[int], list[int]]:
    """The blocks that all ways to a block pass, and those that all ways from it do; in order."""
    following = {block.first: block.next for block in span}
    order = sorted(following)
    leading: dict[int, set[int]] = {order[0]: {order[0]}}
    for block in order:
        for after in following[block]:
            if block in leading:
                known = leading.get(after)
                leading[after] = ({*leading[block]} if known is None else known & leading[block]) | {after}
    final: dict[int, set[int]] = {}
    for block in reversed(order):
        sets = [final[after] for after in following[block] if after in final]
        final[block] = (set.intersection(*sets) if sets else set()) | {block}
    return sorted(leading[here]), sorted(final[here] - {here})


def ways(code: Sequence[Instruction], loop: Loop, keys: Callable[[Instruction], Key]) -> dict[Key, list[int]]:
    """The shortest way of one turn for each sum of keys along it: the instructions, in order."""
    span = blocks(code, loop.first, loop.last)
    width = len(keys(code[loop.first]))
    sums = {
        block.first: _sum((keys(code[i]) for i in range(block.first, block.last + 1)), width)
        for block in span
    }
    at: dict[int, dict[Key, tuple[int, tuple[int, Key] | None]]] = {loop.first: {(0,) * width: (0, None)}}
    ends: dict[Key, tuple[int, tuple[int, Key]]] = {}
    for block in span:
        closes = code[block.last].target == loop.first
        for key, (length, _) in at.get(block.first, {}).items():
            through = _sum((key, sums[block.first]), width)
            cost = length + block.last - block.first + 1
            if closes and (through not in ends or ends[through][0] > cost):
                ends[through] = (cost, (block.first, key))
            for after in block.next:
                known = at.setdefault(after, {})
                if through not in known or known[through][0] > cost:
                    known[through] = (cost, (block.first, key))
    by_start = {block.first: block for block in span}
    return {key: _way(by_start, at, place) for key, (_, place) in ends.items()}


def _way(
    blocks_: dict[int, Block],
    at: dict[int, dict[Key, tuple[int, tuple[int, Key] | None]]],
    end: tuple[int, Key],
) -> list[int]:
    found: list[int] = []
    place: tuple[int, Key] | None = end
    while place is not None:
        block = blocks_[place[0]]
        found[:0] = range(block.first, block.last + 1)
        place = at[place[0]][place[1]][1]
    return found


def _sum(keys: Iterator[Key] | tuple[Key, ...], width: int) -> Key:
    total = [0] * width
    for key in keys:
        for i, n in enumerate(key):
            total[i] += n
    return tuple(total)
