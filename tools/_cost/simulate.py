"""One multiprocessor's share of a kernel, all of them alike: its loops, its copies, and its part of the
memory's bandwidth.

Times are nanoseconds, from the launch on. Memory serves what is asked of it in order; what it reads arrives
a latency later. A kernel is a list of passes, one for each unit that a block treats.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """What a multiprocessor may have. bandwidth, l2: bytes a nanosecond. latency, l2_latency: until a read
    arrives.

    backlog: bytes written that may wait in the second-level cache for memory.
    """

    bandwidth: float
    l2: float
    latency: float
    l2_latency: float
    backlog: float


@dataclass(frozen=True)
class Loop:
    """A loop over pieces: what it reads and writes of a piece, in bytes, and how long it computes on it.

    in_flight: pieces that are asked for ahead.
    """

    time: float
    reads: float = 0
    writes: float = 0
    in_flight: float = 1


@dataclass(frozen=True)
class Pass:
    """One unit on one multiprocessor.

    pieces: how many it has, at_hand of which are staged at the end. begin, window, barrier, merge: what
    happens besides the loops. windows: of that many pieces each. in_cache: of what is read again, the share
    that the second-level cache has. early: bytes that are asked into that cache before the barrier, of what
    memory has to give next. lost: whether that is of the same unit, which the cache has lost in part.
    """

    share: Share
    pieces: int
    windows: int
    load: Loop
    sweep: float
    write: Loop
    again: Loop
    at_hand: int
    in_cache: float = 0
    begin: float = 0
    window: float = 0
    barrier: float = 0
    merge: float = 0
    early: float = 0
    lost: bool = False


class Memory:
    """The share's queue."""

    def __init__(self, share: Share, now: float) -> None:
        self.share, self.free, self.cache_free = share, now, now

    def read(self, now: float, amount: float, cached: float = 0) -> float:
        """When it arrives. cached: the part of it that the second-level cache has."""
        landed = now
        if cached > 0:
            self.cache_free = max(self.cache_free, now) + amount * cached / self.share.l2
            landed = self.cache_free + self.share.l2_latency
        if cached < 1:
            self.free = max(self.free, now) + amount * (1 - cached) / self.share.bandwidth
            landed = max(landed, self.free + self.share.latency)
        return landed

    def write(self, now: float, amount: float) -> float:
        """When the writer may go on."""
        self.free = max(self.free, now) + amount / self.share.bandwidth
        return max(now, self.free - self.share.backlog / self.share.bandwidth)


def streamed(
    memory: Memory, now: float, pieces: int, loop: Loop, cached: float = 0, ready: float = 0
) -> float:
    """When a loop has ended. ready: bytes of its first pieces that are in the second-level cache already."""
    coming: deque[float] = deque()
    asked = 0
    for _ in range(pieces):
        while loop.reads and asked < pieces and len(coming) < max(1.0, loop.in_flight):
            at_hand = min(1.0, max(0.0, ready - asked * loop.reads) / loop.reads)
            coming.append(memory.read(now, loop.reads, max(cached, at_hand)))
            asked += 1
        now = max(now, coming.popleft()) if loop.reads else now
        now += loop.time
        if loop.writes:
            now = memory.write(now, loop.writes)
    return now


def serial(passes: list[Pass], start: float) -> float:
    """Load, sweep, barrier, write, one unit after the other."""
    now, ready, memory = start, 0.0, Memory(passes[0].share, start)
    for n, each in enumerate(passes):
        memory.share = each.share
        now += each.begin
        now, ready = _loaded(memory, each, now, ready), 0.0
        if each.early and n + 1 < len(passes):
            ready = min(each.early, each.pieces * each.load.reads)
            memory.read(now, ready)
        now = _written(memory, each, now + each.barrier + each.merge)
    return max(now, memory.free)


def split(passes: list[Pass], start: float) -> float:
    """The next unit is loaded while the blocks of this one hear of each other; the barrier has two halves."""
    memory = Memory(passes[0].share, start)
    now = _loaded(memory, passes[0], start + passes[0].begin, 0)
    done = now + passes[0].barrier
    for each, after in zip(passes, [*passes[1:], None], strict=True):
        memory.share = each.share
        heard = done
        if after is not None:
            now = _loaded(memory, after, now + after.begin, 0)
            done = now + after.barrier
        now = _written(memory, each, max(now, heard) + each.merge)
    return max(now, memory.free)


def _loaded(memory: Memory, each: Pass, now: float, ready: float) -> float:
    whole = each.pieces // max(1, each.windows)
    for n in range(each.windows):
        pieces = whole if n < each.windows - 1 else each.pieces - whole * (each.windows - 1)
        now = streamed(memory, now, pieces, each.load, ready=ready) + pieces * each.sweep + each.window
        ready = 0
    return now


def _written(memory: Memory, each: Pass, now: float) -> float:
    now = streamed(memory, now, each.at_hand, each.write)
    return streamed(memory, now, each.pieces - each.at_hand, each.again, each.in_cache)


def ring(passes: list[Pass], start: float, capacity: int, ahead: int = 1) -> float:
    """A ring of so many pieces, refilled in place behind the writes; sums run along, at most `ahead` units
    ahead.
    """
    first = passes[0]
    memory = Memory(first.share, start)
    count = first.pieces
    total = count * len(passes)
    landed: list[float] = []
    fetched = [False] * total
    heard: list[float | None] = [None] * len(passes)
    now, summed, written, turn = start + first.begin, 0, 0, False
    more = 0.0  # when what else the next write reads is there: it is asked for a write ahead

    def fill() -> None:
        while len(landed) < min(total, written + capacity):
            landed.append(memory.read(now, first.load.reads, float(fetched[len(landed)])))

    fill()
    while written < total:
        unit = written // count
        each = passes[unit]
        done = heard[unit]
        may_write = done is not None and done <= now
        next_one = summed < len(landed) and summed // count - unit <= ahead
        may_sum = next_one and landed[summed] <= now
        if may_write and not (turn and may_sum):
            if written % count == 0:
                now += each.merge
                more = memory.read(now, each.write.reads) if each.write.reads else 0
            now, there = max(now, more), now
            if each.write.reads and (written + 1) % count:
                more = memory.read(there, each.write.reads)
            now = memory.write(now + each.write.time, each.write.writes)
            written, turn = written + 1, True
            fill()
        elif may_sum:
            now, summed, turn = now + each.load.time + each.sweep, summed + 1, False
            if summed % count == 0:
                now += each.window
                heard[summed // count - 1] = now + each.barrier
                early = int(each.early // max(1.0, each.load.reads))
                for i in range(len(landed), min(total, len(landed) + early)):
                    if not fetched[i]:
                        fetched[i] = True
                        memory.read(now, each.load.reads)
        else:
            turn = False
            later = [landed[summed]] if next_one else []
            now = min([*later, *([done] if done is not None else [])])
    return max(now, memory.free)


def long_ring(passes: list[Pass], start: float, capacity: int) -> float:
    """A ring that holds so many pieces of a unit's, one less than all at most, and has the others copied once
    more: as bnfold/kernels/long_ring.cuh has them in order.
    """
    first = passes[0]
    memory = Memory(first.share, start)
    stay = min(capacity, first.pieces - 1)
    passing = first.pieces - stay
    asked = min(first.pieces, int(first.early // first.load.reads))
    # What the second-level cache has of each piece: all that was asked for, of this unit or the next, and a
    # share of the rest.
    lost = min(asked, passing) if first.lost else 0
    again = [1.0] * lost + [first.in_cache] * (passing - lost)
    later = [0.0 if lost else 1.0] * asked + [0.0] * (first.pieces - asked)
    copies = [0.0] * first.pieces + again + (later + again) * (len(passes) - 1)
    coming: deque[float] = deque()
    now = start + first.begin

    def copy() -> None:
        if copies:
            coming.append(memory.read(now, first.load.reads, copies.pop(0)))

    for _ in range(capacity):
        copy()
    for each in passes:
        for _ in range(passing):
            now = max(now, coming.popleft()) + each.load.time
            copy()
        if lost or each is not passes[-1]:
            memory.read(now, asked * each.load.reads)
        for _ in range(stay):
            now = max(now, coming.popleft()) + each.sweep
        now += each.window + each.barrier + each.merge
        # What else a write needs is asked for a turn ahead.
        more = memory.read(now, each.write.reads) if each.write.reads else 0
        for n in range(stay + passing):
            loop, there = (each.write, now) if n < stay else (each.again, max(now, coming.popleft()))
            now, there = max(there, more), now
            more = memory.read(there, loop.reads) if loop.reads and n + 1 < stay + passing else 0
            now = memory.write(now + loop.time, loop.writes)
            copy()
    return max(now, memory.free)
