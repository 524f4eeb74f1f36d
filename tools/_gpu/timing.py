"""Times on a CUDA device: of work with cold caches and without the host, of a large copy, of the host alone.

The L2 cache is flushed before every run of the work: a buffer larger than it is written, then another one is
read, so that the work finds neither its inputs there nor lines of others that are still to be written back.
Many runs of (flush, work) are one CUDA graph, many flushes another; both are replayed in turns, and the
difference of their times is the work's. What the work leaves in L2 to be written is written back by the flush
that follows, and is so in its time, as are the gaps between its kernels; launches by the host are not.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

Work = Callable[[], object]
WARM_UP = 3  # calls
LEAST_FLUSH = 64 * 2**20  # bytes


class Timer:
    """Measures on one device, on a stream of its own.

    Args:
        replays: how often a graph is replayed; each replay gives one time.
    """

    def __init__(self, replays: int = 9) -> None:
        size = max(2 * torch.cuda.get_device_properties(0).L2_cache_size, LEAST_FLUSH)
        self.replays = replays
        self.stream: Any = torch.cuda.Stream()
        self.written, self.read = (torch.zeros(size // 4, device="cuda") for _ in range(2))
        self.sink = torch.zeros((), device="cuda")
        self.flushes: dict[int, torch.cuda.CUDAGraph] = {}
        torch.cuda.synchronize()

    def flush(self) -> None:
        """Empties the L2 cache of everything else."""
        self.written.fill_(1.0)
        torch.sum(self.read, 0, out=self.sink)

    def us(self, prepare: Callable[[], Work], expected: float) -> dict[str, float]:
        """Microseconds of one run of the work: median and quartiles.

        Args:
            prepare: gives the work, which queues kernels, always the same.
            expected: about how many microseconds it takes.
        """
        runs = 16 if expected < 30 else 8 if expected < 300 else 4
        torch.cuda.synchronize()
        with torch.cuda.stream(self.stream):
            work = prepare()
            for _ in range(WARM_UP):
                work()
        torch.cuda.synchronize()
        if runs not in self.flushes:
            self.flushes[runs] = self._captured(self.flush, runs)

        def run() -> None:
            self.flush()
            work()

        graph, flushes = self._captured(run, runs), self.flushes[runs]
        for each in (flushes, graph):
            self._replayed(each)
        times = [(self._replayed(graph) - self._replayed(flushes)) * 1e3 / runs for _ in range(self.replays)]
        return spread(times)

    def _captured(self, work: Work, runs: int) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            for _ in range(runs):
                work()
        return graph

    def _replayed(self, graph: torch.cuda.CUDAGraph) -> float:
        """Milliseconds."""
        with torch.cuda.stream(self.stream):
            return milliseconds(graph.replay)


def milliseconds(work: Work) -> float:
    """Of what is queued on the current stream, by its events."""
    event: Any = torch.cuda.Event
    start, end = (event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def spread(times: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(times, n=4)
    return {"median": round(middle, 3), "quartile_1": round(low, 3), "quartile_3": round(high, 3)}


def copy_bandwidth(replays: int = 9, during: Work | None = None) -> dict[str, float]:
    """GB/s of a copy within device memory, bytes read and written; `during` is called under its load."""
    size = min(2**30, torch.cuda.get_device_properties(0).total_memory // 16)
    source = torch.randint(255, (size,), dtype=torch.uint8, device="cuda")
    target, copies = torch.empty_like(source), 10

    def copied() -> None:
        for _ in range(copies):
            target.copy_(source)

    copied()
    times = [milliseconds(copied) / copies for _ in range(replays)]
    if during is not None:
        for _ in range(int(1000 / (copies * min(times))) + 1):  # about a second
            copied()
        during()
        torch.cuda.synchronize()
    return {"bytes": size, "gb_per_s": round(2 * size / spread(times)["median"] / 1e6, 1)}


def host_us(work: Work, calls: int = 200, repeats: int = 7) -> dict[str, float]:
    """Microseconds that the host needs for a call whose kernels take less."""
    synchronize: Work = torch.cuda.synchronize if torch.cuda.is_available() else bool
    times = []
    for _ in range(repeats + 1):  # the first warms up
        synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            work()
        times.append((time.perf_counter() - start) / calls * 1e6)
    synchronize()
    return spread(times[1:])
