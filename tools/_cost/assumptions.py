"""What the predictions assume: numbers that only a measurement may change."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Model:
    """What the predictions assume. Times in ns.

    issued, used: of what the schedulers and of what the pipes and shared memory could do at most, the part
    that they reach. memory, cache: until a read arrives, under load. launch: of a kernel. block: of a block
    that follows another. skew: between the first block of a grid that arrives at a barrier and the last
    one. kept: part of the second-level cache that still holds what was read, when it is read again;
    waiting: part of it that may hold writes for memory. dram: of a large copy's bandwidth, what these
    patterns of access reach. between: times all that happens between the loops. port: bytes a cycle between
    a multiprocessor and the second-level cache. clusters: times the clusters that run at one time.
    """

    issued: float = 0.65
    used: float = 0.85
    memory: float = 800
    cache: float = 350
    launch: float = 2500
    block: float = 500
    skew: float = 500
    kept: float = 0.5
    waiting: float = 0.25
    dram: float = 1.0
    between: float = 1.0
    port: float = 64
    clusters: float = 1.0


MODEL = Model()  # frozen before the kernels were changed; changes need a measurement
# One assumption changed at a time: what the results depend on.
OTHERWISE = {
    "memory answers after 1200 ns": replace(MODEL, memory=1200),
    "half of the issue slots": replace(MODEL, issued=0.5),
    "twice the time between the loops": replace(MODEL, between=2.0),
    "half of it": replace(MODEL, between=0.5),
    "skew of 1500 ns at barriers": replace(MODEL, skew=1500),
    "85% of the bandwidth": replace(MODEL, dram=0.85),
    "nothing kept in L2": replace(MODEL, kept=0.0),
    "launch in 1000 ns": replace(MODEL, launch=1000),
    "14 clusters of 8 at one time": replace(MODEL, clusters=14 / 16),
}
