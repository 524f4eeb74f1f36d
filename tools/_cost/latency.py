"""How long a warp is on its way between the loops over vectors: setting up, summing up, exchanging,
merging.

The longest way that needs no slow path is followed, one instruction at a time: each waits for its operands,
and for its turn among the warps of a scheduler. Loops on that way are taken once, unless their structure
says how often: shuffles, and what is read of the other blocks. Latencies are assumptions, of the size that
others have measured.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from tools._cost import flow
from tools._cost.flow import Loop
from tools._cost.loops import Role
from tools._cost.pipes import WARP
from tools._cost.sass import Instruction

# Cycles until a result is there; what is not named takes `ALU`.
ALU = 5
CYCLES = {
    "DADD": 8, "DFMA": 8, "DMUL": 8, "DSETP": 8, "MUFU": 20, "I2F": 14, "F2I": 14, "F2F": 14, "I2FP": 8,
    "SHFL": 24, "LDS": 29, "LDC": 30, "ULDC": 12, "S2R": 20, "S2UR": 20, "R2UR": 12,
    "LDG": 300, "LD": 220, "ATOMG": 500, "ATOM": 500, "BAR": 40, "UCGABAR_ARV": 150, "UCGABAR_WAIT": 150,
}  # fmt: skip
FENCE = {"SC": 700, "ALL": 500}  # MEMBAR, that all wait for
WAIT = ("BAR", "UCGABAR_WAIT", "UCGABAR_ARV")  # so does the warp for these
INTERVAL = 4  # cycles between two instructions of a warp: four warps take turns at a scheduler
ARRIVES = ("ATOMG", "ATOM", "RED", "UCGABAR_ARV")


@dataclass(frozen=True)
class Between:
    """Cycles of a multiprocessor for each unit, besides its loops over vectors.

    begin: until the first load. window: sums of a window. barrier: from the arrival until all have arrived,
    if they do at once. merge: from there to the first write, where a lane merges the sets of `sets` ranks
    for one channel; letter: for each of these; channels: for one turn more of the same warp, which merges
    `beside` channels at one time.
    """

    begin: float = 0
    window: float = 0
    barrier: float = 0
    merge: float = 0
    sets: float = 0
    letter: float = 0
    channels: float = 0
    beside: float = 0

    def merging(self, ranks: int, channels: int, warps: int) -> float:
        """Cycles of a merge; lanes share the ranks, warps the channels."""
        fewer = (self.sets - -(-ranks // WARP)) * self.letter
        turns = -(-channels // (warps * max(1, round(self.beside))))
        more = (turns - 1) * max(0.0, self.channels - fewer) if self.channels else 0
        return self.merge - fewer + more

    def shown(self) -> dict[str, int]:
        return {name: round(value) for name, value in asdict(self).items() if value}


def between(code: Sequence[Instruction], roles: Sequence[Role]) -> Between:
    """What a kernel's code says of it."""
    tree = flow.loops(code)
    vectors = [role.loop for role in roles]
    if any(role.role == "ring" for role in roles):
        return _overlapped(code, tree, roles)
    loads = [role.loop for role in roles if role.role in ("load", "stream")]
    writes = [role.loop for role in roles if role.role in ("write", "again", "stream")]
    if not loads or not writes:
        return Between()
    unit = next((loop for loop in tree if loop.holds(loads[0]) and loop.holds(writes[0])), None)
    start = unit.first if unit and unit not in vectors else 0
    load, write = loads[0].first, min(loop.first for loop in writes)
    begin = _way(code, start, load, [], tree)
    if load == write:
        return Between(begin=cycles(code, begin))
    sums = _way(code, load, write, vectors, tree)
    arrive = next((n for n, i in enumerate(sums) if code[i].name in ARRIVES), None)
    if arrive is None:
        return Between(begin=cycles(code, begin), window=cycles(code, sums))
    # A fence before the arrival belongs to the barrier, which ends with what polls, or the cluster's wait.
    polls = [loop for top in tree for loop in top.all() if _polls(code, loop)]
    waits = [n for n, i in enumerate(sums) if _in(i, polls)] or [
        n for n in range(arrive, min(arrive + 40, len(sums))) if code[sums[n]].name == "UCGABAR_WAIT"
    ]
    first, last = _fence(code, sums, arrive), max([arrive, *waits])
    parts = sums[:first], sums[first : last + 1], sums[last + 1 :]
    return _between(code, tree, vectors, begin, *parts)


def splits(code: Sequence[Instruction], roles: Sequence[Role]) -> bool:
    """Whether a unit is loaded between the arrival and the wait of the one before."""
    tree = flow.loops(code)
    loads = [role.loop for role in roles if role.role == "load"]
    unit = next((loop for loop in tree if any(loop.holds(load) for load in loads)), None)
    if unit is None:
        return False
    arrives = [i for i in range(unit.first, unit.last) if code[i].name in ARRIVES]
    polls = [loop.first for loop in unit.all() if _polls(code, loop)]
    span = flow.blocks(code, unit.first, unit.last)
    starts = [block.first for block in span if any(block.first <= i <= block.last for i in arrives)]
    return any(
        load.first in flow.passed(span, start, poll)
        for load in loads
        for start in starts
        for poll in polls
        if start < load.first < poll
    )


def _overlapped(code: Sequence[Instruction], tree: Sequence[Loop], roles: Sequence[Role]) -> Between:
    """Of a kernel whose loops overlap: an arrival and a wait lie in parts of their own of a loop over turns.

    The part of an arrival begins, and that of a wait ends, where ways come together that do not lead through
    it.
    """
    vectors = [role.loop for role in roles]
    ring = next(role.loop for role in roles if role.role == "ring")
    turns = next(loop for loop in tree if loop.holds(ring))
    begin = _way(code, 0, vectors[0].first, [], tree)
    arrives = [i for i in range(turns.first, turns.last) if code[i].name in ARRIVES]
    polls = [loop for loop in turns.all() if loop != turns and _polls(code, loop)]
    if not arrives or not polls:
        return Between(begin=cycles(code, begin))
    span = flow.blocks(code, turns.first, turns.last)
    heard = next(i for i in range(polls[0].last, turns.last) if code[i].name == "BAR")  # by all threads
    begins, _ = _part(span, arrives[0], vectors)
    _, ends = _part(span, heard, vectors)
    sums, merge = _way(code, begins, arrives[0], [], tree), _way(code, heard, ends, [], tree)
    told = _fence(code, sums, len(sums))
    wait = [*sums[told:], arrives[0], *range(polls[0].first, polls[0].last + 1)]
    return _between(code, tree, vectors, begin, sums[:told], wait, merge)


def _fence(code: Sequence[Instruction], way: Sequence[int], arrive: int) -> int:
    """Where on a way an arrival begins: with its fence, if it has one."""
    return next((n for n in range(max(0, arrive - 12), arrive) if code[way[n]].name == "MEMBAR"), arrive)


def _between(
    code: Sequence[Instruction],
    tree: Sequence[Loop],
    vectors: Sequence[Loop],
    begin: Sequence[int],
    window: Sequence[int],
    barrier: Sequence[int],
    merge: Sequence[int],
) -> Between:
    letters, channels = _merging(code, tree, vectors, merge)
    turns = [(_unrolled(code, loop), cycles(code, _turn(code, loop, tree))) for loop in letters]
    return Between(
        begin=cycles(code, begin),
        window=cycles(code, window),
        barrier=cycles(code, barrier),
        merge=cycles(code, merge),
        # What is left over of unrolled turns lies on the way as well.
        sets=max((2 * times - 1 for times, _ in turns), default=0),
        letter=sum(each / times for times, each in turns),
        channels=sum(cycles(code, _turn(code, loop, tree)) for loop in channels),
        beside=max((_beside(code, loop) for loop in channels), default=0),
    )


def _turn(code: Sequence[Instruction], loop: Loop, tree: Sequence[Loop]) -> list[int]:
    return _way(code, loop.first, loop.last, [], tree)


def _part(span: Sequence[flow.Block], i: int, around: Sequence[Loop]) -> tuple[int, int]:
    """Where ways come together before an instruction, with no loop over vectors behind; and where others
    join it.
    """
    here = next(block.first for block in span if block.first <= i <= block.last)
    before, after = flow.around(span, here)
    begins = next(
        block for block in before if not any(_in(each, around) for each in flow.passed(span, block, here))
    )
    mine = flow.ahead(span, here)
    joined = {after for block in span if block.first not in mine for after in block.next}
    return begins, next((block for block in after if block in joined), span[-1].last)


def cycles(code: Sequence[Instruction], way: Sequence[int]) -> float:
    """Of one warp on this way."""
    now, ready = 0.0, dict[str, float]()
    for i in way:
        each = code[i]
        now = max([now + INTERVAL, *(ready.get(register, 0.0) for register in each.read)])
        if each.name == "MEMBAR":
            now += next((n for kind, n in FENCE.items() if kind in each.qualifiers), FENCE["ALL"])
        if each.name in WAIT:
            now = max([now, *ready.values()]) + CYCLES[each.name]
        done = now + CYCLES.get(each.name, ALU)
        ready.update(dict.fromkeys(each.written, done))
    return max([now, *ready.values()])


def _unrolled(code: Sequence[Instruction], loop: Loop) -> int:
    """How many ranks a lane reads in one turn of the loop over them: each is 32 further on."""
    body = code[loop.first : loop.last + 1]
    steps = [int(found[2], 16) for each in body if (found := _STEP.match(each.operands))]
    return min((step for step in steps if step % WARP == 0), default=WARP) // WARP


_STEP = re.compile(r"(R\d+), \1(?:\.reuse)?, (0x[0-9a-f]+)(?:, RZ)?$")


def _beside(code: Sequence[Instruction], loop: Loop) -> int:
    """How many channels a warp merges at one time: lanes of one are those that its shuffles join."""
    body = code[loop.first : loop.last + 1]
    masks = [int(found[1], 16) for each in body if (found := _MASK.match(each.operands))]
    return WARP // (2 * max(masks)) if masks else 1


_MASK = re.compile(r"PT, R\d+, R\d+, (0x[0-9a-f]+), 0x1f$")


def _in(i: int, loops: Sequence[Loop]) -> bool:
    return any(loop.first <= i <= loop.last for loop in loops)


def _polls(code: Sequence[Instruction], loop: Loop) -> bool:
    """A short loop that reads a word again and again."""
    body = code[loop.first : loop.last + 1]
    return len(body) < 40 and any(each.name in ("LDG", "LD") and "STRONG" in each.qualifiers for each in body)


def _merging(
    code: Sequence[Instruction], tree: Sequence[Loop], vectors: Sequence[Loop], way: Sequence[int]
) -> tuple[list[Loop], list[Loop]]:
    """The loops over the ranks of a channel, and that over the channels of a warp, on the way of a merge."""
    letters, channels, here = [], [], {*way}
    for loop in (loop for top in tree for loop in top.all()):
        body = code[loop.first : loop.last + 1]
        if loop.first not in here or any(loop.holds(each) for each in vectors):
            continue
        if not any(each.name in ("LDG", "LD") and each.bits < 128 for each in body):
            continue
        if any(each.name == "SHFL" for each in body):
            channels.append(loop)
        elif not loop.inner and not _polls(code, loop):
            letters.append(loop)
    return letters, channels[:1]


def _way(
    code: Sequence[Instruction], first: int, last: int, around: Sequence[Loop], tree: Sequence[Loop]
) -> list[int]:
    """The longest way from one instruction to the other, `last` left out, without the loops to go around.

    Blocks that call a slow path are no part of it. Loops of shuffles alone are taken three times, others
    once.
    """
    usable = flow.reached(code)
    best: dict[int, tuple[int, int | None]] = {first: (0, None)}
    span = flow.blocks(code, first, last - 1)
    for block in span:
        if block.first not in best or block.first not in usable:
            continue
        body = range(block.first, block.last + 1)
        if any(code[i].name == "CALL" for i in body):
            continue
        length = best[block.first][0] + len(_apart(code, body, around))
        for after in block.next:
            if after not in best or best[after][0] < length:
                best[after] = (length, block.first)
    if last not in best:
        return []
    by_start = {block.first: block for block in span}
    found: list[int] = []
    place = best[last][1]
    while place is not None:
        block = by_start[place]
        found[:0] = _apart(code, range(block.first, block.last + 1), around)
        place = best[place][1]
    return _repeated(code, found, tree)


def _apart(code: Sequence[Instruction], block: Sequence[int], around: Sequence[Loop]) -> list[int]:
    """What a block has besides vectors: those that a loop left over are treated as in the loop."""
    wide = [code[i].name for i in block if code[i].bits == 128]
    sums = sum(code[i].name in ("FADD", "FFMA", "HADD2", "HFMA2") for i in block)
    if around and ({"LDG", "STG", "LDGSTS"} & {*wide} or ("LDS" in wide and sums >= 16)):
        return []
    return [i for i in block if not _in(i, around)]


SHUFFLES = 3  # turns of a loop of shuffles: a vector's channels are eight of 32


def _repeated(code: Sequence[Instruction], way: list[int], tree: Sequence[Loop]) -> list[int]:
    for loop in (loop for top in tree for loop in top.all() if not loop.inner):
        body = code[loop.first : loop.last + 1]
        if len(body) < 24 and any(each.name == "SHFL" for each in body):
            turn = [i for i in way if loop.first <= i <= loop.last]
            if turn:
                at = way.index(turn[0])
                way[at:at] = turn * (SHUFFLES - 1)
    return way
