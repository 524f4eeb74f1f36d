"""Where values are found, for tensors beyond 2^31 and 2^32 values: compared with Python's integers."""

from __future__ import annotations

import numpy as np
import pytest

from bnfold.kernels.launch import Device, Launch, Problem, plan
from tests.kernels.host import HERE, Host, unavailable

REASON = unavailable()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")

WAYS = [(width, layout) for layout in ("plane", "planes", "columns") for width in (1, 4, 8)]
NAMES = [f"samples::places<{width}, bnfold::Layout::{layout}>" for width, layout in WAYS]
H100 = Device((9, 0), multiprocessors=132, shared_memory=227 * 1024, clusters=8, cooperative=True)

# outer, channels, inner; whether aligned
HUGE = {
    "beyond 2^31 values": (70_000, 64, 56 * 56, True),
    "beyond 2^32 values, channels last": (70_000 * 56 * 56, 96, 1, True),
    "a large odd plane": (3, 16, 32_767 * 32_765, True),
    "one plane of nearly 2^31 values": (1, 3, 2**31 - 8, True),
    "single values": (5, 3, 2**30 - 1, False),
    "rows of single values": (2**31 + 5, 7, 1, False),
    "odd planes": (9_000_000, 64, 49, True),
    "as many columns as can be": (3000, 2**26, 1, True),
    "more columns than that": (3000, 2**26 + 32, 1, True),
}


@pytest.fixture(scope="module")
def host() -> Host:
    return Host("indexing.cuh", [*NAMES, "samples::quotients"], folder=HERE)


@pytest.mark.parametrize("kind", ["float", "bnfold::half"])
@pytest.mark.parametrize("name", HUGE)
def test_places_in_a_huge_tensor(host: Host, name: str, kind: str) -> None:
    outer, channels, inner, aligned = HUGE[name]
    found = plan(Problem("forward", (kind, "float"), outer, channels, inner, aligned), H100)
    assert found is not None
    end_of_last = 0
    for rank in sorted({0, 1 % found.ranks, found.ranks // 2, found.ranks - 1}):
        for unit in sorted({0, found.units - 1}):
            end = check_part(host, found, (outer, channels, inner), unit, rank)
            end_of_last = max(end_of_last, end)
    assert end_of_last == outer * row_of(found, inner)


def row_of(found: Launch, inner: int) -> int:
    return found.group * inner // found.width


def check_part(host: Host, found: Launch, shape: tuple[int, int, int], unit: int, rank: int) -> int:
    """Checks the first window of a part and its last one; returns where the part ends."""
    outer, channels, inner = shape
    width, row = found.width, row_of(found, inner)
    first = unit * found.group
    group = min(found.group, channels - first)
    layout = found.kernel.split("Layout::")[1].split(",")[0].split(">")[0]
    begin, end = (part_begin(layout, outer, row, found.ranks, which) for which in (rank, rank + 1))
    windows = -(-(end - begin) // found.window)
    for index in sorted({0, windows - 1}):
        place = np.full(found.window, -1, np.int64)
        offset = np.zeros(found.window, np.uint32)
        values = np.zeros(64)
        numbers = np.zeros(4, np.int64)
        host.launch(
            f"samples::places<{width}, bnfold::Layout::{layout}>",
            grid=1,
            block=512,
            arguments=[place, offset, values, numbers, np.int64(outer)]
            + [np.int32(each) for each in (channels, inner, found.group, found.ranks, found.window)]
            + [np.int32(each) for each in (unit, rank, index)],
        )
        from_, count = begin + index * found.window, min(found.window, end - begin - index * found.window)
        assert list(numbers) == [begin, end, count, windows]
        vectors = from_ + np.arange(count, dtype=object)
        in_run = vectors % row * width
        wanted = (vectors // row * channels + first) * inner + in_run
        used = in_run < group * inner  # columns beyond the last channel
        assert (place[:count][used] == wanted[used]).all()
        assert (place[:count][~used] == -1).all()
        assert (place[count:] == -1).all()
        assert (offset[:count][used] == in_run[used]).all()
        assert wanted[used].max() + width <= outer * channels * inner
        for c in range(group):
            assert values[c] == before(from_ + count, c, row, width, inner) - before(
                from_, c, row, width, inner
            )
    return end


def part_begin(layout: str, outer: int, row: int, ranks: int, rank: int) -> int:
    each, more = divmod(outer if layout == "columns" else outer * row, ranks)
    return (each * rank + min(rank, more)) * (row if layout == "columns" else 1)


def before(vectors: int, c: int, row: int, width: int, inner: int) -> int:
    """How many of the first vectors' values are of channel c."""
    runs, rest = divmod(vectors, row)
    return runs * inner + min(max(rest * width - c * inner, 0), inner)


def test_a_plane_too_large_has_no_kernel() -> None:
    assert plan(Problem("forward", ("float", "float"), 1, 3, 2**30 + 1, False), H100) is None


def test_division_is_exact(host: Host) -> None:
    draw = np.random.default_rng(0)
    divisors = {
        1,
        2,
        3,
        5,
        7,
        49,
        64,
        3136,
        2**16 - 1,
        2**16 + 1,
        2**30 - 1,
        2**30,
        *draw.integers(1, 2**30, 60),
    }
    for d in sorted(map(int, divisors)):
        multiples = d * draw.integers(0, max(1, 2**31 // d), 500)
        n = np.concatenate(
            [multiples, multiples - 1, multiples + 1, draw.integers(0, 2**31, 500), [0, 2**31 - 1]]
        )
        n = n[(n >= 0) & (n < 2**31)].astype(np.uint32)
        out = np.zeros_like(n)
        arguments = [n, out, np.int32(n.size), np.uint32(d)]
        host.launch("samples::quotients", grid=1, block=64, arguments=arguments)
        assert (out == n // d).all()
