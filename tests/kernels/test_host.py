"""The host side of the kernels' port: what runs them on the CPU is tested with kernels of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tests.kernels.host import HERE, Host, HostError, unavailable

REASON = unavailable()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")
apart = pytest.mark.skipif(unavailable(sanitize=True) is not None, reason=unavailable(sanitize=True) or "")

NAMES = [
    *(
        "sums<true, true>",
        "sums<false, true>",
        "sums<true, false>",
        "cluster_sums<true>",
        "cluster_sums<false>",
        "grid_sums",
    ),
    *("halves", "to_halves", "pairs", "halves_of_words", "arithmetic", "copy", "parameters"),
    *("divergent_barrier", "divergent_shuffle", "two_barriers", "two_masks", "crossed", "never"),
    *("shared_at", "global_at", "overflow", "load_shared", "shift", "deep"),
]
SEEDS = range(6)
Array = np.ndarray[Any, Any]


class Samples:
    """The kernels of host_samples.cuh by their short names."""

    def __init__(
        self, names: Sequence[str] = NAMES, sanitize: bool = False, flags: Sequence[str] = ()
    ) -> None:
        full = [f"samples::{name}" for name in names]
        self.host = Host("host_samples.cuh", full, folder=HERE, sanitize=sanitize, flags=flags)

    def __call__(self, kernel: str, *arguments: np.generic | Array | None, **shape: Any) -> None:
        self.host.launch(f"samples::{kernel}", arguments=arguments, **{"grid": 1, "block": 64, **shape})

    def wrong(self, kernel: str, *arguments: np.generic | Array | None, **shape: Any) -> str:
        """How the launch fails."""
        with pytest.raises(HostError) as caught:
            self(kernel, *arguments, **shape)
        return str(caught.value)


@pytest.fixture(scope="module")
def plain() -> Samples:
    return Samples()


@pytest.fixture(scope="module")
def sanitized() -> Samples:
    return Samples(sanitize=True)


@pytest.fixture(params=["plain", pytest.param("sanitized", marks=apart)])
def run(request: pytest.FixtureRequest) -> Samples:
    both: Samples = request.getfixturevalue(request.param)
    return both


def floats(*shape: int) -> Array:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_block_sum(run: Samples) -> None:
    x, results = floats(3000), []
    for seed in SEEDS:
        out = np.full(8, np.nan, np.float32)
        run("sums<true, true>", x, out, np.int32(x.size), grid=8, block=256, shared=32, seed=seed)
        results.append(out)
        assert np.array_equal(out, results[0])
    wanted = np.array([np.append(x, np.zeros(1096)).reshape(-1, 8, 256)[:, b].sum() for b in range(8)])
    assert np.allclose(results[0], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel", ["sums<false, true>", "sums<true, false>"])
def test_a_missing_barrier_shows(plain: Samples, kernel: str) -> None:
    x, results = floats(3000), []
    for seed in SEEDS:
        out = np.zeros(8, np.float32)
        plain(kernel, x, out, np.int32(x.size), grid=8, block=256, shared=32, seed=seed)
        results.append(out)
    assert np.isnan(results).any()


@pytest.mark.parametrize("cluster", [1, 2, 8])
def test_cluster(run: Samples, cluster: int) -> None:
    x = floats(8, 64)
    wanted = np.repeat(x.reshape(-1, cluster, 64).sum(axis=1), cluster, axis=0)
    for seed in SEEDS:
        out = np.zeros((8, 64), np.float32)
        run("cluster_sums<true>", x, out, np.int32(cluster), grid=8, cluster=cluster, shared=256, seed=seed)
        assert np.allclose(out, wanted, atol=1e-5)


def test_shared_memory_of_a_block_that_has_ended(run: Samples) -> None:
    x, out = floats(8, 64), np.zeros((8, 64), np.float32)
    failures = []
    for seed in SEEDS:
        try:
            run("cluster_sums<false>", x, out, np.int32(8), grid=8, cluster=8, shared=256, seed=seed)
        except HostError as error:
            failures.append(str(error))
    assert any("of_peer of a block that has ended (host_samples.cuh:" in failure for failure in failures)


def test_grid_barrier(run: Samples) -> None:
    x = floats(16, 64)
    results = []
    for seed in SEEDS:
        partial, out = (np.full(16, np.nan, np.float32) for _ in range(2))
        words = np.zeros(1, np.uint32)
        arguments = (x, partial, out, words, np.int32(16))
        run("grid_sums", *arguments, grid=16, cooperative=True, shared=8, seed=seed)
        results.append(out)
        assert np.array_equal(out, results[0])
    assert np.allclose(results[0], x.sum(), atol=1e-4)


def test_many_threads(plain: Samples) -> None:
    x, partial, out = np.ones((8, 1024), np.float32), np.zeros(8, np.float32), np.zeros(8, np.float32)
    arguments = (x, partial, out, np.zeros(1, np.uint32), np.int32(8))
    plain("grid_sums", *arguments, grid=8, block=1024, cooperative=True, shared=128, seed=1)
    assert (out == 8192).all()


def test_half(plain: Samples) -> None:
    bits = np.arange(65536).astype(np.uint16)
    back = np.zeros(65536, np.float32)
    plain("halves", bits, back, np.int32(bits.size))
    wanted = bits.view(np.float16).astype(np.float32)
    number = ~np.isnan(wanted)
    assert np.array_equal(back[number].view(np.uint32), wanted[number].view(np.uint32))
    assert (back[~number].view(np.uint32) == 0x7FFFFFFF).all()

    # All halves, what lies in the middle of two, and their neighbours; then any bits.
    middle = (wanted[number][:-1].astype(np.float64) + wanted[number][1:]) / 2
    middle = middle[np.isfinite(middle)].astype(np.float32)
    any_bits = np.random.default_rng(0).integers(0, 2**32, 200_000, np.uint32).view(np.float32)
    edges = np.array([65519.99, 65520, -65520, 65504, 2e-8, 3e-8, -0.0], np.float32)
    some = np.concatenate([wanted, middle, edges, any_bits])
    up, down = some[number := np.isfinite(some)].view(np.uint32) + 1, some[number].view(np.uint32) - 1
    some = np.concatenate([some, up.view(np.float32), down.view(np.float32)])
    out = np.zeros(some.size, np.uint16)
    plain("to_halves", some, out, np.int32(some.size))
    with np.errstate(over="ignore"):
        halves = some.astype(np.float16)
    number = ~np.isnan(halves)
    assert np.array_equal(out[number], halves[number].view(np.uint16))
    assert (out[~number] == 0x7FFF).all()


def test_pairs(plain: Samples) -> None:
    """Rounded to nearest even, NaN to the one with all bits but the sign; the larger of a value and 0."""
    any_bits = np.random.default_rng(0).integers(0, 2**32, 100_000, np.uint32)
    middle = np.arange(2**16, dtype=np.uint32) << np.uint32(16) | np.uint32(0x8000)
    bits = np.concatenate([any_bits, middle - np.uint32(1), middle, middle + np.uint32(1)])
    x = bits.view(np.float32)
    halves, wide, larger = np.zeros_like(bits[::2]), np.zeros_like(bits[::2]), np.zeros_like(x)
    plain("pairs", x, halves, wide, larger, np.int32(x.size))
    nan = np.isnan(x)
    one_by_one = np.zeros(x.size, np.uint16)
    plain("to_halves", x, one_by_one, np.int32(x.size))
    assert np.array_equal(halves.view(np.uint16), one_by_one)
    found, kept = wide.view(np.uint16), bits.astype(np.uint64)
    nearest = (kept + 0x7FFF + (kept >> np.uint64(16) & np.uint64(1))) >> np.uint64(16)
    assert np.array_equal(found[~nan], nearest[~nan].astype(np.uint16))
    assert (found[nan] == 0x7FFF).all()
    assert np.array_equal(larger[~nan].view(np.uint32), np.where(x > 0, bits, 0)[~nan])
    assert (larger[nan].view(np.uint32) == 0x7FFFFFFF).all()


def test_halves_of_words(plain: Samples) -> None:
    words = np.random.default_rng(0).integers(0, 2**32, 4000, np.uint32)
    filled, highest = np.zeros(4000, np.uint32), np.zeros(1000, np.uint32)
    plain("halves_of_words", words, filled, highest, np.int32(4000))
    signs = words.view(np.int16) < 0
    assert np.array_equal(filled.view(np.int16), -signs.astype(np.int16))
    assert np.array_equal(highest, np.packbits(signs.reshape(-1, 8), axis=1, bitorder="little")[:, 0])


def test_arithmetic(run: Samples) -> None:
    a, b = np.random.default_rng(0).integers(0, 2**32, (2, 1000), np.uint32)
    high, root = np.zeros(1000, np.uint32), np.zeros(1000, np.float32)
    run("arithmetic", a, b, high, root, np.int32(1000))
    assert np.array_equal(high, a.astype(np.uint64) * b >> np.uint64(32))
    assert np.array_equal(root, np.sqrt(a.astype(np.float32)))


def test_copy_by_16_bytes(run: Samples) -> None:
    memory = np.arange(16 * 101, dtype=np.uint8)
    start = -memory.ctypes.data % 16
    x, out = memory[start : start + 1600], np.zeros(1600 + 16, np.uint8)
    out = out[-out.ctypes.data % 16 :][:1600]
    run("copy", x, out, np.int32(100), seed=3)
    assert np.array_equal(out, x)
    run("copy", x, x, np.int32(100))  # in place: each piece is loaded before it is stored
    x = memory[start + 8 : start + 8 + 1600 - 16]
    assert "misaligned access of 16 bytes (host_samples.cuh:" in run.wrong("copy", x, out, np.int32(99))


def test_parameters(run: Samples) -> None:
    out = np.zeros(1)
    values = [np.bool_(True), np.int16(-2), np.int32(3), np.int64(2**40), np.float32(0.5), np.float64(0.25)]
    run("parameters", out, *values, None)
    assert out[0] == 2.75 + 2**40
    run("parameters", out, *values, np.array([7], np.int32))
    assert out[0] == 9.75 + 2**40
    assert "argument 3 is an integer of 8 bytes, the kernel takes an integer of 4 bytes" in run.wrong(
        "parameters", out, *values[:2], np.int64(3), *values[3:], None
    )
    wrong = "argument 5 is an integer of 4 bytes, the kernel takes a floating-point number of 4 bytes"
    assert wrong in run.wrong("parameters", out, *values[:4], np.int32(1), values[5], None)
    assert "argument 7 is an integer of 8 bytes, the kernel takes a pointer" in run.wrong(
        "parameters", out, *values, np.int64(0)
    )
    assert "the kernel takes 8 arguments, not 7" in run.wrong("parameters", out, *values)


def test_arrays(plain: Samples, sanitized: Samples) -> None:
    x = np.zeros((64, 2), np.float32)
    assert "not contiguous" in plain.wrong("global_at", x[:, 0], np.int32(0))
    x[:] = 1
    sanitized("sums<true, true>", x, x, np.int32(128), shared=8)  # the same memory twice
    assert x[0, 0] == 128 and x[0, 1] == 1
    assert "overlap" in sanitized.wrong("sums<true, true>", x[0:3], x[1:], np.int32(1), shared=8)
    fixed = np.zeros(1, np.float32)
    fixed.flags.writeable = False
    assert "only to be read" in sanitized.wrong("global_at", fixed, np.int32(0))
    sanitized("sums<true, true>", np.zeros(0, np.float32), x, np.int32(0), shared=8)


def test_divergence(run: Samples) -> None:
    out = np.zeros(64, np.float32)
    for seed in SEEDS:
        message = run.wrong("divergent_barrier", seed=seed)
        assert (
            "divergence: block 0, thread" in message and "waits at sync_block (host_samples.cuh:" in message
        )
        message = run.wrong("divergent_shuffle", out, seed=seed)
        assert (
            "divergence: block 0, thread" in message and "waits at shuffle_xor (host_samples.cuh:" in message
        )
        message = run.wrong("two_barriers", seed=seed)
        assert message.count("waits at sync_block") == 2
        assert "different masks" in run.wrong("two_masks", out, seed=seed)


def test_deadlock(run: Samples) -> None:
    word = np.zeros(1, np.uint32)
    for seed in SEEDS[:3]:
        message = run.wrong("crossed", seed=seed)
        assert "block 0, thread 0 waits at sync_block" in message and "up to thread 31" in message
        assert "block 0, thread 32 waits at sync_cluster" in message and "up to thread 63" in message
        assert "block 0, thread 0 waits at" in run.wrong("never", word, seed=seed)
        # Blocks that are not resident together.
        x, partial, out = floats(4, 64), np.zeros(4, np.float32), np.zeros(4, np.float32)
        message = run.wrong("grid_sums", x, partial, out, word, np.int32(4), grid=4, shared=8, seed=seed)
        assert "deadlock" in message and "thread 1 waits at sync_block" in message
        word[:] = 0
    # The machine is as it was.
    run("grid_sums", x, partial, out, word, np.int32(4), grid=4, shared=8, cooperative=True)
    assert np.allclose(out, x.sum(), atol=1e-4)


def test_shapes(plain: Samples) -> None:
    for shape, wrong in [
        ({"grid": 0}, "a grid of 0 blocks"),
        ({"block": 48}, "a block of 48 threads"),
        ({"block": 2048}, "a block of 2048 threads"),
        ({"grid": 3, "cluster": 2}, "a grid of 3 blocks in clusters of 2"),
        ({"cluster": 32}, "a cluster of 32 blocks"),
        ({"shared": 227 * 1024 + 1}, "232449 bytes of shared memory, of 232448"),
    ]:
        assert wrong in plain.wrong("crossed", **shape)


def test_stack_overflow(plain: Samples) -> None:
    assert "the stack of 32768 bytes overflowed" in plain.wrong("deep", np.zeros(64, np.int32))


def test_load_once_is_for_global_memory(run: Samples) -> None:
    out = np.zeros(64, np.float32)
    assert "shared memory where global memory is wanted" in run.wrong("load_shared", out, shared=16)


@apart
def test_load_once_is_not_for_what_was_stored(sanitized: Samples) -> None:
    pieces = np.zeros(33 * 4 + 4, np.float32)
    pieces = pieces[-pieces.ctypes.data % 16 // 4 :][: 33 * 4]
    assert "what this launch stored" in sanitized.wrong("shift", pieces, np.int32(32), block=32, seed=1)


@apart
def test_sanitizers(sanitized: Samples) -> None:
    out = np.zeros(70, np.float32)
    sanitized("shared_at", out, np.int32(4), shared=20)
    assert np.isnan(out[:64]).all() and (out[64:] == 0).all()
    for index in (5, -1):
        message = sanitized.wrong("shared_at", out, np.int32(index), shared=20)
        assert "heap-buffer-overflow" in message and "host_samples.cuh" in message
    sanitized("global_at", out, np.int32(69))
    assert out[69] == 1
    for index in (70, -1):
        message = sanitized.wrong("global_at", out, np.int32(index))
        assert "heap-buffer-overflow" in message and "host_samples.cuh" in message
    message = sanitized.wrong("overflow", np.full(1, 2**31 - 1, np.int32), np.int32(1))
    assert "signed integer overflow" in message and "host_samples.cuh" in message


def test_ucontext() -> None:
    run = Samples(["sums<true, true>", "grid_sums", "crossed", "never"], flags=["-DBNFOLD_UCONTEXT"])
    test_block_sum(run)
    test_deadlock(run)


def test_compiler_errors(tmp_path: Any) -> None:
    (tmp_path / "wrong.cuh").write_text('#include "port.cuh"\nBNFOLD_KERNEL(32) unused(int size) {}\n')
    with pytest.raises(HostError, match=r"(?s)wrong\.cuh:2.*unused parameter"):
        Host("wrong.cuh", ["unused"], folder=tmp_path)
