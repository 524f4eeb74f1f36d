"""Copies that go on while a thread does other things, and barriers in two halves: what the CPU notices."""

from __future__ import annotations

import numpy as np
import pytest

from tests.kernels.host import HostError, unavailable
from tests.kernels.test_host import Array, Samples, floats

REASON = unavailable()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")
apart = pytest.mark.skipif(unavailable(sanitize=True) is not None, reason=unavailable(sanitize=True) or "")

NAMES = [
    *("ring<0, 0>", "ring<1, 0>", "ring<0, 1>", "early", "copy_to", "waits"),
    *("split_sums<true>", "split_sums<false>", "arrives_twice", "never_arrives", "arrives_alone"),
]
LATE, AT_ONCE = range(4), range(4, 8)  # seeds


@pytest.fixture(scope="module")
def plain() -> Samples:
    return Samples(NAMES)


@pytest.fixture(scope="module")
def sanitized() -> Samples:
    return Samples(["copy_to"], sanitize=True)


def aligned(*shape: int) -> Array:
    """Drawn numbers, from a multiple of 16 bytes on."""
    size = int(np.prod(shape))
    memory = np.zeros(size + 4, np.float32)
    start = -memory.ctypes.data % 16 // 4
    memory[start : start + size] = floats(size)
    return memory[start : start + size].reshape(shape)


def through(run: Samples, kernel: str, seed: int, size: int = 3) -> bool:
    """Whether a ring of `size` pieces doubles what goes through it."""
    x, out = aligned(20, 64, 4), aligned(20, 64, 4)
    out[:] = 0
    run(kernel, x, out, np.int32(20), np.int32(size), shared=size * 64 * 16, seed=seed)
    return np.array_equal(out, 2 * x)


@pytest.mark.parametrize("seed", [*LATE, *AT_ONCE])
def test_a_ring(plain: Samples, seed: int) -> None:
    assert through(plain, "ring<0, 0>", seed)


def test_a_missing_wait_shows_where_copies_are_late(plain: Samples) -> None:
    assert not any(through(plain, "ring<1, 0>", seed, size=4) for seed in LATE)
    assert all(through(plain, "ring<1, 0>", seed, size=4) for seed in AT_ONCE)
    # In the smallest ring, a copy also meets the one before it that nobody waited for.
    for seed in (*LATE, *AT_ONCE):
        with pytest.raises(HostError, match="copy_async to where an earlier copy is under way"):
            through(plain, "ring<1, 0>", seed)


@pytest.mark.parametrize("seed", [*LATE, *AT_ONCE])
def test_a_place_that_is_filled_too_early_shows(plain: Samples, seed: int) -> None:
    x, out = aligned(20, 64, 4), aligned(20, 64, 4)
    sizes = np.int32(20), np.int32(3)
    wrong = plain.wrong("ring<0, 1>", x, out, *sizes, shared=3 * 64 * 16, seed=seed)
    assert "copy_async to where an earlier copy is under way (host_samples.cuh:" in wrong
    plain("early", x, out, *sizes, shared=3 * 64 * 16, seed=seed)
    assert not (out == 2 * x)[:-3].any()  # behind which nothing comes


@pytest.mark.parametrize("seed", [*LATE, *AT_ONCE])
def test_copies_that_nobody_waited_for(plain: Samples, seed: int) -> None:
    wrong = plain.wrong("copy_to", aligned(4), np.int32(0), shared=16, block=32, seed=seed)
    assert "ends while its copies are under way" in wrong


def test_waits_are_for_enough_and_not_for_all(plain: Samples) -> None:
    x, found = aligned(32, 4), np.zeros((10, 10, 32), np.float32)
    plain("waits", x, found, block=32, shared=10 * 32 * 16)
    there = (~np.isnan(found)).all(axis=2).sum(axis=1)
    assert there.tolist() == [10, 9, 8, 8, 6, 6, 4, 4, 4, 4]
    plain("waits", x, found, block=32, shared=10 * 32 * 16, seed=4)
    assert np.array_equal(found, np.broadcast_to(x[:, 0], found.shape))


def test_where_a_copy_may_go(plain: Samples) -> None:
    for offset in (8, 16, -16):
        message = plain.wrong("copy_to", aligned(4), np.int32(offset), shared=24, block=32)
        assert "copy_async to what is no place in shared memory (host_samples.cuh:" in message
    message = plain.wrong("copy_to", aligned(8).reshape(-1)[1:], np.int32(0), shared=16)
    assert "misaligned access of 16 bytes (host_samples.cuh:" in message


@apart
def test_copies_and_prefetches_beyond_an_array(sanitized: Samples) -> None:
    for size in (3, 0):
        message = sanitized.wrong("copy_to", aligned(4)[:size], np.int32(0), shared=16)
        assert "heap-buffer-overflow" in message and "host_samples.cuh" in message


@pytest.mark.parametrize("cluster", [1, 2, 8])
def test_the_cluster_goes_on_once_all_have_arrived(plain: Samples, cluster: int) -> None:
    x = floats(8, 64)
    wanted = np.repeat(x.reshape(-1, cluster, 64).sum(axis=1), cluster, axis=0)
    for seed in range(8):
        out = np.zeros((8, 64), np.float32)
        plain("split_sums<true>", x, out, np.int32(cluster), grid=8, cluster=cluster, shared=256, seed=seed)
        assert np.allclose(out, wanted.reshape(8, 64), atol=1e-5)


def test_a_cluster_that_does_not_wait_shows(plain: Samples) -> None:
    x, out = floats(8, 64), np.zeros((8, 64), np.float32)
    wrong = 0
    for seed in range(8):
        plain("split_sums<false>", x, out, np.int32(8), grid=8, cluster=8, shared=256, seed=seed)
        wrong += bool(np.isnan(out).any())
    assert wrong > 0


def test_halves_that_do_not_fit(plain: Samples) -> None:
    for seed in range(4):
        shape = {"grid": 2, "cluster": 2, "seed": seed}
        assert "arrives again at the cluster's barrier" in plain.wrong("arrives_twice", **shape)
        assert "at whose barrier it has not arrived" in plain.wrong("never_arrives", **shape)
        assert "divergence: " in plain.wrong("arrives_alone", **shape)
