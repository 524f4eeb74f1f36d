"""Which kernel, on which grid: a table.

A tensor is an array [outer][channels][inner] (work.cuh): NCHW is (N, C, H*W), channels last (N*H*W, C, 1).
`LAYOUTS` says how its values are read, `ROWS` how many blocks share the channels of a unit and by which
means they exchange their statistics. In both the first line that fits is taken. Limits are those that the
driver tells of the device; nothing is assumed of an architecture but what its number stands for.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["KERNELS", "LAYOUTS", "ROWS", "Device", "Launch", "Problem", "instances", "plan", "reading"]

THREADS = 512  # of every block; the kernels' launch bound
VECTOR = 16  # bytes
TILE = 64  # bytes of neighbouring channels that a block reads in the layout `columns`
MOST_CHANNELS = 64  # kMostChannels
SIZES = {"float": 4, "bnfold::half": 2, "bnfold::bfloat16": 2}


@dataclass(frozen=True)
class Device:
    """What the launch table asks of a device.

    shared_memory: bytes that one block may have, after opting in. clusters: largest cluster of blocks that is
    portable, 1 where there are none. cooperative: whether a grid's blocks may wait for each other.
    """

    capability: tuple[int, int]
    multiprocessors: int
    shared_memory: int
    clusters: int
    cooperative: bool


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
    """What a kernel keeps in shared memory: tensors staged, and bytes a channel, and a warp and slot.

    types: how many `Problem.types` are; those behind the first are float or the first one again.
    """

    source: str
    types: int
    staged: int
    channel: int
    scratch: int

    def shared(self, window_bytes: int, slots: int, threads: int) -> int:
        """Bytes for a window of that size."""
        scratch = self.scratch * slots * threads // 32
        return self.staged * window_bytes + self.channel * MOST_CHANNELS + scratch


KERNELS = {
    "forward": Kernel("forward.cuh", types=2, staged=1, channel=12 + 2 * 24 + 4, scratch=8),
    "backward": Kernel("backward.cuh", types=2, staged=2, channel=12 + 20 + 2 * 8, scratch=8),
    "apply": Kernel("apply.cuh", types=3, staged=0, channel=12, scratch=0),
    "apply_backward": Kernel("apply.cuh", types=2, staged=0, channel=20, scratch=0),
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
    group = width
    while group < problem.channels and group * problem.size < TILE:
        group *= 2
    fits = problem.inner == 1 and problem.aligned and problem.channels % width == 0
    return Reading("columns", width, group, fits)


def _plane(problem: Problem) -> Reading:
    width = VECTOR // problem.size
    return Reading("plane", width, 1, problem.aligned and problem.inner % width == 0)


def _planes(problem: Problem) -> Reading:
    width = VECTOR // problem.size
    group = width // math.gcd(problem.inner, width)
    fits = problem.aligned and problem.channels % group == 0 and group * problem.inner < 2**30
    return Reading("planes", width, group, fits)


def _single_columns(problem: Problem) -> Reading:
    return Reading("columns", 1, 32, problem.inner == 1)


def _single_plane(problem: Problem) -> Reading:
    return Reading("plane", 1, 1, problem.inner < 2**30)


LAYOUTS: tuple[tuple[str, Callable[[Problem], Reading]], ...] = (
    ("inner = 1, channels a whole number of vectors: 64 bytes of channels a unit", _columns),
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

    @property
    def kernel(self) -> Kernel:
        return KERNELS[self.problem.kernel]

    @property
    def units(self) -> int:
        """Groups of channels."""
        return -(-self.problem.channels // self.reading.group)

    @property
    def slots(self) -> int:
        """Channels that a warp sums at one time."""
        return self.reading.group if self.reading.layout == "columns" else 1

    @property
    def capacity(self) -> int:
        """Vectors of a window at most: a multiple of the threads, so that each keeps its place in a row."""
        free = self.device.shared_memory - self.kernel.shared(0, self.slots, THREADS)
        return free // (self.kernel.staged * self.reading.width * self.problem.size * THREADS) * THREADS

    def part(self, ranks: int) -> int:
        """Vectors that a block has to hold, at most, where `ranks` blocks share a unit."""
        row = self.reading.group * self.problem.inner // self.reading.width
        if self.reading.layout == "columns":
            return -(-self.problem.outer // ranks) * row
        return -(-self.problem.outer * row // ranks)

    @property
    def bytes(self) -> int:
        """Of a unit, of all tensors staged."""
        return self.part(1) * self.reading.width * self.problem.size * max(1, self.kernel.staged)


@dataclass(frozen=True)
class Row:
    """One line of the table: `ranks` gives the blocks of a unit, or None where the line does not fit."""

    name: str
    exchange: str
    ranks: Callable[[Fit], int | None]


def _alone(fit: Fit) -> int | None:
    """The unit fits in one block; and there is one for each multiprocessor, or a unit is small."""
    busy = fit.units >= fit.device.multiprocessors or fit.bytes <= 32 * 1024
    return 1 if busy and fit.part(1) <= fit.capacity else None


def _cluster(fit: Fit) -> int | None:
    """The fewest of 2, 4 or 8 blocks that hold the unit and leave at most a tenth of the device idle.

    The most of them if none does, for a tensor so small that a barrier of the whole grid would cost more.
    """
    sizes = [size for size in (2, 4, 8) if size <= fit.device.clusters and fit.part(size) <= fit.capacity]
    busy = (size for size in sizes if fit.units * size >= 0.9 * fit.device.multiprocessors)
    small = fit.units * fit.bytes <= 4 * 2**20
    return next(busy, max(sizes, default=None) if small else None)


def _grid(fit: Fit) -> int | None:
    """The fewest resident blocks that hold the unit and leave at most a tenth of the device idle.

    Where all together do not hold it, all share it, and read again what they could not keep.
    """
    resident = fit.device.multiprocessors
    if not fit.device.cooperative:
        return None
    for ranks in range(max(1, -(-resident // fit.units)), resident):
        busy = min(fit.units, resident // ranks) * ranks
        if fit.part(ranks) <= fit.capacity and busy >= 0.9 * resident:
            return ranks
    return resident


def _windows(fit: Fit) -> int:
    """One block for each unit, window by window: always possible."""
    return 1


def _stream(fit: Fit) -> int:
    """As many blocks as make eight for each multiprocessor, with four vectors for each thread at least."""
    wanted = -(-8 * fit.device.multiprocessors // fit.units)
    return max(1, min(wanted, fit.part(1) // (4 * THREADS)))


ROWS = (
    Row("one block", "none", _alone),
    Row("cluster", "cluster", _cluster),
    Row("cooperative grid", "grid", _grid),
    Row("one block, windows", "none", _windows),
)
STREAM = Row("stream", "", _stream)
CLUSTERS = (9, 0)  # compute capability from which blocks form clusters


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
    rows = [row for row in _rows(KERNELS[kernel]) if row.exchange != "cluster" or capability >= CLUSTERS]
    found: dict[str, None] = {}  # some rows share an instance
    for activations in SIZES:
        others = dict.fromkeys(("float", activations))
        for rest in itertools.product(others, repeat=KERNELS[kernel].types - 1):
            problem = Problem(kernel, (activations, *rest), 1, 1, 1)
            for (_, read), row in itertools.product(LAYOUTS, rows):
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
    fit = Fit(problem, device, read)
    rows = _rows(fit.kernel)
    row, ranks = next((row, ranks) for row in rows if (ranks := row.ranks(fit)) is not None)
    part = -(-fit.part(ranks) // THREADS) * THREADS
    window = min(part, fit.capacity) if fit.kernel.staged else min(part, 2**20)
    cooperative = row.exchange == "grid"
    clusters = min(fit.units, device.multiprocessors // ranks) if cooperative else fit.units
    return Launch(
        row=row.name,
        source=fit.kernel.source,
        kernel=_name(problem, read, row),
        width=read.width,
        grid=clusters * ranks,
        block=THREADS,
        cluster=ranks if row.exchange == "cluster" else 1,
        cooperative=cooperative,
        shared=fit.kernel.shared(window * read.width * problem.size, fit.slots, THREADS),
        group=read.group,
        ranks=ranks,
        window=window,
        units=fit.units,
    )
