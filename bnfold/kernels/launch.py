"""Which kernel, on which grid: a table.

A tensor is an array [outer][channels][inner] (work.cuh): NCHW is (N, C, H*W), channels last (N*H*W, C, 1).
`LAYOUTS` says how its values are read: the first line that fits. `ROWS` says how many blocks may share the
channels of a unit and by which means they exchange their statistics: those are taken that have least to do
(`Fit.cost`). The driver tells a device's limits; its number stands for no more than what it says.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

__all__ = [
    "CLUSTER_SIZES",
    "KERNELS",
    "LAYOUTS",
    "ROWS",
    "THREADS",
    "Device",
    "Launch",
    "Problem",
    "instances",
    "plan",
    "reading",
]

THREADS = 512  # of every block; the kernels' launch bound
VECTOR = 16  # bytes
TILE = 64  # bytes of neighbouring channels that a block reads in the layout `columns`
TURN = 2 * THREADS  # vectors that a block copies into its ring at one time (ring.cuh)
MOST_CHANNELS = 64  # kMostChannels
MOST_RANKS = 160  # kMostRanks: blocks of a unit
SLOTS = 33  # kLeft: places of a warp, of which one is not used, where vectors of several channels are summed
MOST_COLUMNS = 2**26  # channels in the layout `columns`, where 2^32 vectors are THREADS in each unit at least
CLUSTER_SIZES = (2, 4, 8)  # blocks of those that are portable
SIZES = {"float": 4, "bnfold::half": 2, "bnfold::bfloat16": 2}


@dataclass(frozen=True)
class Device:
    """What the launch table asks of a device.

    shared_memory: bytes that one block may have, after opting in. clusters: largest cluster of blocks that is
    portable, 1 where there are none. cooperative: whether a grid's blocks may wait for each other. at_once:
    how many clusters of 2, 4 and 8 blocks run at one time where each block has all shared memory; (): as many
    as the multiprocessors make. spare: multiprocessors that a cooperative grid leaves to others.
    """

    capability: tuple[int, int]
    multiprocessors: int
    shared_memory: int
    clusters: int
    cooperative: bool
    at_once: tuple[int, ...] = ()
    spare: int = 0

    @property
    def resident(self) -> int:
        """Blocks of a cooperative grid at most: one for each multiprocessor that it may have."""
        return max(1, self.multiprocessors - self.spare)

    @property
    def ranks(self) -> int:
        """Blocks of such a grid that may share a unit at most."""
        return min(self.resident, MOST_RANKS)

    def clusters_at_once(self, size: int) -> int:
        """How many clusters of so many blocks run at one time."""
        if size > self.clusters:
            return 0
        if self.at_once:
            return self.at_once[CLUSTER_SIZES.index(size)]
        return max(1, self.multiprocessors // size)


@dataclass(frozen=True)
class Problem:
    """One call of a kernel.

    types: of the activations, of the parameters and, for `apply`, of the statistics, in the kernels' names.
    aligned: whether all tensors of activations start at a multiple of 16 bytes.
    """

    kernel: str
    types: tuple[str, ...]
    outer: int
    channels: int
    inner: int
    aligned: bool = True

    @property
    def size(self) -> int:
        """Bytes of one value."""
        return SIZES[self.types[0]]


@dataclass(frozen=True)
class Kernel:
    """What a kernel keeps in shared memory: tensors staged, and bytes a channel, a rank, and a warp and slot.

    types: how many `Problem.types` are; those behind the first are float or the first one again.
    """

    source: str
    types: int
    staged: int
    channel: int
    scratch: int
    rank: int = 0

    def shared(self, window_bytes: int, slots: int, threads: int) -> int:
        """Bytes for a window of that size."""
        scratch = self.scratch * slots * threads // 32
        fixed = self.channel * MOST_CHANNELS + self.rank * MOST_RANKS
        return self.staged * window_bytes + fixed + scratch


KERNELS = {
    "forward": Kernel("forward.cuh", types=2, staged=1, channel=3 * 12 + 8 + 4, scratch=12, rank=4),
    "backward": Kernel("backward.cuh", types=2, staged=2, channel=12 + 20 + 2 * 8 + 4, scratch=8),
    "apply": Kernel("apply.cuh", types=3, staged=0, channel=12, scratch=0),
    "apply_backward": Kernel("apply.cuh", types=2, staged=0, channel=20, scratch=0),
}
RINGS = {  # those that pass units through a ring
    "forward": Kernel("forward.cuh", types=2, staged=1, channel=12 + 4 + 3 * 12, scratch=12, rank=4),
    "backward": Kernel("backward.cuh", types=2, staged=2, channel=20 + 8 + 4 * 16, scratch=8),
}


@dataclass(frozen=True)
class Reading:
    """How a problem's values are read: vectors of `width` values, `group` channels a unit."""

    layout: str
    width: int
    group: int
    fits: bool


def _columns(problem: Problem) -> Reading:
    width = VECTOR // problem.size
    group = 2 * width
    while group < problem.channels and group * problem.size < TILE:
        group *= 2
    whole = problem.aligned and problem.channels % width == 0
    return Reading("columns", width, group, problem.inner == 1 and whole and problem.channels <= MOST_COLUMNS)


def _plane(problem: Problem) -> Reading:
    width = VECTOR // problem.size
    return Reading("plane", width, 1, problem.aligned and problem.inner % width == 0)


def _planes(problem: Problem) -> Reading:
    width = VECTOR // problem.size
    group = width // math.gcd(problem.inner, width)
    fits = problem.aligned and problem.channels % group == 0 and group * problem.inner < 2**30
    return Reading("planes", width, group, fits)


def _single_columns(problem: Problem) -> Reading:
    return Reading("columns", 1, 32, problem.inner == 1 and problem.channels <= MOST_COLUMNS)


def _single_plane(problem: Problem) -> Reading:
    return Reading("plane", 1, 1, problem.inner < 2**30)


LAYOUTS: tuple[tuple[str, Callable[[Problem], Reading]], ...] = (
    ("inner = 1, channels a whole number of vectors: 64 bytes of channels a unit, or 32", _columns),
    ("planes a whole number of vectors: one channel a unit", _plane),
    ("a few planes together a whole number of vectors: so many channels a unit", _planes),
    ("inner = 1, any channels or alignment: value by value, 32 channels a unit", _single_columns),
    ("any planes or alignment: value by value, one channel a unit", _single_plane),
)


@dataclass(frozen=True)
class Fit:
    """What the rows of the table judge by, for one problem on one device."""

    problem: Problem
    device: Device
    reading: Reading
    turn: int = THREADS  # a window is a multiple of so many vectors

    @property
    def kernel(self) -> Kernel:
        return (RINGS if self.turn == TURN else KERNELS)[self.problem.kernel]

    @property
    def units(self) -> int:
        """Groups of channels."""
        return -(-self.problem.channels // self.reading.group)

    @property
    def slots(self) -> int:
        """Sets that a warp leaves."""
        if self.reading.layout == "columns":
            return SLOTS if self.reading.width > 1 else self.reading.group
        return 1

    @functools.cached_property
    def capacity(self) -> int:
        """Vectors of a window at most: a multiple of the threads, so that each keeps its place in a row."""
        most = 2**20
        if self.kernel.staged:
            free = self.device.shared_memory - self.kernel.shared(0, self.slots, THREADS)
            most = free // self.vector
        if self.reading.layout == "columns":  # which counts vectors in 32 bits, from a window's first row on
            most = min(most, 2**32 // self.units)
        return most // self.turn * self.turn

    @property
    def vector(self) -> int:
        """Bytes of a vector of all tensors staged."""
        return self.kernel.staged * self.reading.width * self.problem.size

    def part(self, ranks: int) -> int:
        """Vectors that a block has to hold, at most, where `ranks` blocks share a unit."""
        row = self.reading.group * self.problem.inner // self.reading.width
        if self.reading.layout == "columns":
            return -(-self.problem.outer // ranks) * row
        return -(-self.problem.outer * row // ranks)

    def fits(self, ranks: int) -> bool:
        """Whether so many blocks hold the unit."""
        return self.part(ranks) <= self.capacity

    def cost(self, row: Row, ranks: int) -> int:
        """Bytes that a block stages at most, with those that it could while it waits for others.

        A ring stages those of the next unit meanwhile, where there is room; but no unit takes less than a
        barrier does, however little of it a block has.
        """
        passes = -(-self.units // row.at_once(self.device, ranks))
        part = self.part(ranks)
        if row.exchange != "ring" or passes == 1:
            again = max(0, part - self.capacity)  # what it reads once more
            return passes * ((part + again) * self.vector + row.barrier)
        waits = 0 if 2 * part <= self.capacity else 3 * row.barrier // 8
        own = -(-part // THREADS) * THREADS * self.vector  # a thread's vectors, of all threads
        return passes * max(own + waits, row.barrier) + row.barrier // 2


@dataclass(frozen=True)
class Row:
    """One line of the table.

    ranks: the numbers of blocks of a unit that are possible. at_once: of how many units, so many blocks each,
    a device has the blocks at one time. barrier: bytes that a block could stage while it waits for others.
    turn: its window is a multiple of so many vectors. least: compute capability.
    """

    name: str
    exchange: str
    ranks: Callable[[Fit], Iterable[int]]
    at_once: Callable[[Device, int], int] = lambda device, ranks: device.multiprocessors
    barrier: int = 0
    turn: int = THREADS
    least: tuple[int, int] = (0, 0)

    @property
    def cooperative(self) -> bool:
        """Whether its blocks wait for each other in global memory."""
        return self.exchange in ("ring", "long_ring", "grid")

    def serves(self, kernel: str, read: Reading) -> bool:
        """Whether it has a kernel that reads like that: rings pass vectors of `columns` and `plane`."""
        passes = kernel in RINGS and read.layout in ("columns", "plane") and read.width > 1
        return self.turn == THREADS or passes

    def fit(self, problem: Problem, device: Device, read: Reading) -> Fit:
        """What the line judges by, where a problem is read like that."""
        fit = Fit(problem, device, read, self.turn)
        if self.cooperative and read.layout == "columns" and read.width > 1 and not fit.fits(device.ranks):
            return Fit(problem, device, dataclasses.replace(read, group=2 * read.width), self.turn)
        return fit


def _alone(fit: Fit) -> Iterable[int]:
    """One, if it holds the unit."""
    return [1] if fit.fits(1) else []


def _cluster(fit: Fit) -> Iterable[int]:
    """2, 4 or 8 that hold the unit. The driver tells how many clusters run at one time."""
    return [size for size in CLUSTER_SIZES if fit.device.clusters_at_once(size) and fit.fits(size)]


def _grid(fit: Fit) -> Iterable[int]:
    """Any number of resident blocks that hold the unit; the grid takes several units at once, and in turn.

    Where all together do not hold it, all share it, and read again what they could not keep.
    """
    if not fit.device.cooperative:
        return []
    return [n for n in range(1, fit.device.ranks + 1) if fit.fits(n)] or [fit.device.ranks]


def _passes(fit: Fit) -> bool:
    """Whether a ring can pass the units: all of them are whole, and 32 bits count vectors."""
    able = fit.device.cooperative and fit.device.capability >= COPIES
    return able and fit.problem.channels % fit.reading.group == 0 and fit.part(1) * fit.units < 2**32


def _ring(fit: Fit) -> Iterable[int]:
    """Any number of resident blocks that hold the unit, but one: `columns` and `plane` in vectors."""
    return filter(fit.fits, range(fit.device.ranks, 1, -1)) if _passes(fit) else []


def _long_ring(fit: Fit) -> Iterable[int]:
    """All resident blocks, where they do not hold the unit: `columns` and `plane` in vectors."""
    most = fit.device.ranks
    able = _passes(fit) and fit.capacity >= 2 * TURN and fit.part(most) < 2**31 - TURN  # counted by an int
    held = fit.units == 1 and dataclasses.replace(fit, turn=THREADS).fits(most)  # by a grid
    return [most] if able and not fit.fits(most) and not held else []


def _teams(device: Device, ranks: int) -> int:
    return device.resident // ranks


def _windows(fit: Fit) -> Iterable[int]:
    """One, window by window: where nothing else is possible."""
    return [1]


def _stream(fit: Fit) -> Iterable[int]:
    """As many blocks as make eight for each multiprocessor, with four vectors for each thread at least."""
    wanted = -(-8 * fit.device.multiprocessors // fit.units)
    return [max(1, min(wanted, fit.part(1) // (4 * THREADS)))]


CLUSTERS = (9, 0)  # compute capability from which blocks form clusters
COPIES = (8, 0)  # and from which copies into shared memory go on by themselves
ROWS = (
    Row("one block", "none", _alone),
    Row("cluster", "cluster", _cluster, Device.clusters_at_once, barrier=32 * 1024, least=CLUSTERS),
    Row("ring", "ring", _ring, _teams, barrier=64 * 1024, turn=TURN, least=COPIES),
    Row("long ring", "long_ring", _long_ring, _teams, barrier=32 * 1024, turn=TURN, least=COPIES),
    Row("cooperative grid", "grid", _grid, _teams, barrier=64 * 1024),
    Row("one block, windows", "none", _windows),
)
STREAM = Row("stream", "", _stream)


def _rows(kernel: Kernel) -> tuple[Row, ...]:
    """Those of a kernel: one that stages nothing has nothing to exchange."""
    return ROWS if kernel.staged else (STREAM,)


def _name(problem: Problem, read: Reading, row: Row) -> str:
    """The kernel's instance in C++."""
    exchange = [f"bnfold::Exchange::{row.exchange}"] if row.exchange else []
    arguments = [*problem.types, str(read.width), f"bnfold::Layout::{read.layout}", *exchange]
    return f"bnfold::{problem.kernel}<{', '.join(arguments)}>"


def instances(kernel: str, capability: tuple[int, int]) -> list[str]:
    """The C++ names of all instances of a kernel that `plan` picks on devices of a compute capability."""
    found: dict[str, None] = {}  # some rows share an instance
    for activations in SIZES:
        others = dict.fromkeys(("float", activations))
        for rest in itertools.product(others, repeat=KERNELS[kernel].types - 1):
            problem = Problem(kernel, (activations, *rest), 1, 1, 1)
            for (_, read), row in itertools.product(LAYOUTS, _rows(KERNELS[kernel])):
                if capability >= row.least and row.serves(kernel, read(problem)):
                    # Layout and width are the same for all shapes.
                    found[_name(problem, read(problem), row)] = None
    return list(found)


@dataclass(frozen=True)
class Launch:
    """A kernel, by its C++ name in `source`, and its grid, in blocks; `width` values are a vector."""

    row: str
    source: str
    kernel: str
    width: int
    grid: int
    block: int
    cluster: int
    cooperative: bool
    shared: int
    group: int
    ranks: int
    window: int
    units: int

    @functools.cached_property
    def _hash(self) -> int:
        return hash((self.kernel, self.grid, self.cluster, self.shared, self.window))

    def __hash__(self) -> int:  # computed once: a launch is looked up each time that it is made
        return self._hash

    def without(self, device: Device) -> Device | None:
        """A device as one that cannot let this launch's blocks run together; None: they need not."""
        if self.cluster > 1:
            return dataclasses.replace(device, clusters=1)
        return dataclasses.replace(device, cooperative=False) if self.cooperative else None


def reading(problem: Problem) -> Reading | None:
    """How a problem is read, or None if it cannot be.

    That is with 2^31 channels or values of a plane, or 2^30 of a plane that is not aligned.
    """
    if max(problem.channels, problem.inner) >= 2**31:  # ints in the kernels
        return None
    return next((found for _, read in LAYOUTS if (found := read(problem)).fits), None)


def plan(problem: Problem, device: Device) -> Launch | None:
    """The launch of a problem on a device, or None if no kernel serves it; see `reading`."""
    read = reading(problem)
    if read is None or problem.outer * problem.inner == 0 or problem.channels == 0:
        return None
    *rows, last = _rows(KERNELS[problem.kernel])
    fits = [(row.fit(problem, device, read), row) for row in rows if row.serves(problem.kernel, read)]
    possible = [(fit, row, ranks) for fit, row in fits for ranks in row.ranks(fit)]
    if not possible:
        fit = last.fit(problem, device, read)
        possible = [(fit, last, ranks) for ranks in last.ranks(fit)]
    fit, row, ranks = min(possible, key=lambda choice: choice[0].cost(*choice[1:]))  # the first of equals
    units = min(fit.units, device.resident // ranks) if row.cooperative else fit.units  # at one time
    passes = -(-fit.units // units) if row.exchange == "ring" else 1
    window = min(fit.capacity, passes * -(-fit.part(ranks) // row.turn) * row.turn)
    return Launch(
        row=row.name,
        source=fit.kernel.source,
        kernel=_name(problem, read, row),
        width=read.width,
        grid=units * ranks,
        block=THREADS,
        cluster=ranks if row.exchange == "cluster" else 1,
        cooperative=row.cooperative,
        shared=fit.kernel.shared(window * read.width * problem.size, fit.slots, THREADS),
        group=fit.reading.group,
        ranks=ranks,
        window=window,
        units=fit.units,
    )
