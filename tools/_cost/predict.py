"""Times by the model: of a case, on a device of the table, by what was counted of a kernel."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from tools._cost.assumptions import MODEL, Model
from tools._cost.collect import place
from tools._cost.devices import DEVICES, Hardware
from tools._cost.latency import Between
from tools._cost.loops import named
from tools._cost.pipes import CYCLES, WARP, Count
from tools._cost.simulate import Loop, Memory, Pass, Share, long_ring, ring, serial, split, streamed
from tools._gpu.layers import TYPES, Case

THREADS = 512
VECTOR = 16  # bytes
SCHEDULERS = 4
PIECE = THREADS * VECTOR  # bytes of one tensor
REGISTERS = 65536  # of a multiprocessor
RESERVED = 1024  # bytes of shared memory that the system takes for each block
# A plain copy, its address and loop shared by four vectors.
COPIED = Count(issue=8, memory=2, through=8, in_flight=4)


@dataclass(frozen=True)
class Snapshot:
    """What was counted of one state of the kernels."""

    data: dict[str, Any]

    def launch(self, device: str, case: Case, which: str) -> dict[str, Any]:
        """The launch's fields by name."""
        known = self.data["launches"][self.data["alike"][device]]
        values = known[place(case)][which]
        found = dict(zip(self.data["fields"], values, strict=True))
        return {**found, "row": self.data["rows"][found["row"]]}

    def instance(self, launch: dict[str, Any]) -> dict[str, Any]:
        """What was counted of its kernel."""
        found: dict[str, Any] = self.data["instances"][launch["instance"]]
        return found

    def counts(self, launch: dict[str, Any], fusion: str) -> dict[str, Count]:
        """What each loop costs for a vector."""
        return {
            role: Count(**each.get(fusion, each["alone"]))
            for role, each in self.instance(launch)["loops"].items()
        }


def cycles(count: Count, hardware: Hardware, model: Model) -> float:
    """Of a multiprocessor, for a warp's vector."""
    pipes = CYCLES[hardware.capability]
    slots = count.issue / SCHEDULERS / model.issued
    busiest: float = max(getattr(count, pipe) * takes for pipe, takes in pipes.items()) / SCHEDULERS
    return max(slots, busiest / model.used, (count.shared + count.through) / model.used)


def share(hardware: Hardware, active: float, model: Model) -> Share:
    """Of one of so many multiprocessors that are at work."""
    most = model.port * hardware.ghz
    return Share(
        bandwidth=min(most, hardware.bandwidth * model.dram / active),
        l2=min(most, hardware.l2_peak / active),
        latency=model.memory,
        l2_latency=model.cache,
        backlog=hardware.l2 * model.waiting / active,
    )


def predicted(snapshot: Snapshot, device: str, case: Case, which: str, model: Model = MODEL) -> float:
    """Microseconds of a pass."""
    launch = snapshot.launch(device, case, which)
    work = Work(snapshot, DEVICES[device], launch, case, which, model)
    passes = list(work.passes())
    if work.long:
        return long_ring(passes, model.launch, int(launch["window"]) // work.turn) / 1e3
    if work.rings:
        return ring(passes, model.launch, int(launch["window"]) // work.turn) / 1e3
    if work.instance["splits"]:
        return split(passes, model.launch) / 1e3
    return serial(passes, model.launch) / 1e3


@dataclass(frozen=True)
class Work:
    """A launch as one multiprocessor sees it."""

    snapshot: Snapshot
    hardware: Hardware
    launch: dict[str, Any]
    case: Case
    which: str
    model: Model

    @cached_property
    def instance(self) -> dict[str, Any]:
        return self.snapshot.instance(self.launch)

    @cached_property
    def layout(self) -> str:
        return named(self.instance["kernel"]).layout

    @cached_property
    def counts(self) -> dict[str, Count]:
        return self.snapshot.counts(self.launch, self.case.fusion)

    @cached_property
    def between(self) -> Between:
        return Between(**self.instance["between"])

    @property
    def rings(self) -> bool:
        """Whether units pass through a ring."""
        return "ring" in self.counts

    @property
    def long(self) -> bool:
        """Whether that ring does not hold them."""
        return named(self.instance["kernel"]).exchange == "long_ring"

    @property
    def turn(self) -> int:
        """Vectors of a ring's turn, or of a piece where there is no ring."""
        return THREADS * int(self.instance.get("turn", 1))

    @property
    def early(self) -> float:
        """Bytes of what is read next that are asked into the second-level cache before a barrier."""
        if not self.instance["prefetches"]:
            return 0
        return int(self.snapshot.data["constants"]["kAsked" if self.long else "kAhead"]) * PIECE

    @property
    def tensors(self) -> int:
        """Those that are read, without a residual."""
        return 2 if self.which == "backward" else 1

    @property
    def ns(self) -> float:
        """Of a cycle between the loops."""
        return self.model.between / self.hardware.ghz

    @cached_property
    def part(self) -> int:
        """Vectors of the largest part of a unit: columns are divided between rows."""
        size, ranks = TYPES[self.case.type], int(self.launch["ranks"])
        if self.layout == "columns":
            rows = self.case.batch * self.case.layer.height * self.case.layer.width
            return math.ceil(-(-rows // ranks) * int(self.launch["group"]) * size / VECTOR)
        return math.ceil(self.case.values * size / VECTOR / int(self.launch["units"]) / ranks)

    @cached_property
    def resident(self) -> int:
        """Blocks that a multiprocessor has at one time."""
        registers = math.ceil(max(32, int(self.instance["registers"])) / 8) * 8
        by_registers = REGISTERS // (THREADS * registers)
        by_shared = (self.hardware.shared + RESERVED) // (int(self.launch["shared"]) + RESERVED)
        return max(1, min(by_registers, by_shared, self.hardware.threads // THREADS))

    @cached_property
    def at_once(self) -> int:
        """Blocks that the device has at one time."""
        size = int(self.launch["cluster"])
        if self.launch["cooperative"]:
            return int(self.launch["grid"])
        if size == 1:
            return self.hardware.multiprocessors * self.resident
        clusters = self.hardware.at_once[(2, 4, 8).index(size)] * (self.model.clusters if size == 8 else 1)
        return max(1, int(clusters)) * size * self.resident

    def passes(self) -> Iterator[Pass]:
        """One for each unit that a block treats, or for each wave of blocks."""
        left = int(self.launch["units"]) * int(self.launch["ranks"])
        first = True
        while left > 0:
            blocks = min(left, self.at_once)
            yield self.one(blocks, first or not self.launch["cooperative"])
            left, first = left - blocks, False

    def one(self, blocks: int, new: bool) -> Pass:
        """That of so many blocks. new: they begin with it."""
        active = min(self.hardware.multiprocessors, blocks)
        together = math.ceil(blocks / self.hardware.multiprocessors)  # of one multiprocessor
        mine = share(self.hardware, active, self.model)
        pieces = math.ceil(self.part / self.turn)
        begin = self.between.begin * self.ns + (self.model.block if new else 0)
        added = PIECE if self.case.fusion == "add_relu" else 0
        mask = added / VECTOR if self.which != "eval" else 0.0
        nothing = Loop(0)
        if self.which == "eval":
            stream = self.loop("stream", PIECE + added, PIECE, together)
            return Pass(mine, pieces, 1, nothing, 0, stream, nothing, pieces, begin=begin)
        windows = 1 if self.rings else max(1, math.ceil(self.part / int(self.launch["window"])))
        held = min(pieces, round(int(self.launch["window"]) / self.turn))
        at_hand = pieces if windows == 1 else held
        read_again = (pieces - at_hand) * PIECE * self.tensors * together * active
        kept = min(1.0, self.hardware.l2 * self.model.kept / read_again) if read_again else 0
        if self.which == "forward":
            load, write, out = 0.0, added, PIECE + mask
        else:
            load, write, out = mask, 0, PIECE + added
        read = self.tensors * PIECE + load
        if self.rings:
            return self.in_ring(mine, pieces, read, write, out, begin)
        if self.long:
            return self.in_long_ring(mine, pieces, held, read, write, out, begin)
        loads, writes = self.loop("load", read, 0, together), self.loop("write", write, out, together)
        if "again" in self.counts:
            again = self.loop("again", read + write, out, together)
        else:  # staged once more, then written
            staging = self.loop("restage" if "restage" in self.counts else "load", read, 0, together)
            reads = (read + write) * together
            again = Loop(staging.time + writes.time, reads, writes.writes, staging.in_flight)
        return Pass(
            share=mine,
            pieces=pieces,
            windows=windows,
            load=loads,
            sweep=self.sweep * together,
            write=writes,
            again=again,
            at_hand=at_hand,
            in_cache=kept * self.tensors * PIECE / (read + write),  # of what was read before, no residual
            begin=begin,
            window=self.between.window * self.ns,
            barrier=self.between.barrier * self.ns + self.model.skew if int(self.launch["ranks"]) > 1 else 0,
            merge=self.between.merging(self.launch["ranks"], self.launch["group"], THREADS // WARP) * self.ns,
            early=self.early,
        )

    def in_long_ring(
        self, mine: Share, pieces: int, held: int, reads: float, added: float, writes: float, begin: float
    ) -> Pass:
        """The same where a ring does not hold the units: so many pieces stay, others are read again."""
        load, swept, again, written = (
            self.time(self.counts[role]) for role in ("load", "sweep", "again", "write")
        )
        # What is asked for is the oldest of what is read again if that is too much for the cache, which then
        # keeps of the rest only. The kernel decides by a number for its architecture, nearly the same.
        size = self.turn / THREADS
        passing, piece = pieces - min(held, pieces - 1), self.tensors * PIECE * size
        kept = self.hardware.l2 * self.model.kept / int(self.launch["grid"]) / piece
        lost = passing > kept
        left = max(0, passing - (self.early // piece if lost else 0))
        return replace(
            self.in_turns(mine, pieces, Loop(load, reads), Loop(written, added, writes), begin),
            sweep=swept * size,
            again=Loop(again * size, added * size, writes * size),
            in_cache=min(1.0, kept / left) if left else 0,
            lost=lost,
        )

    def in_ring(
        self, mine: Share, pieces: int, reads: float, added: float, writes: float, begin: float
    ) -> Pass:
        """The same where units pass through a ring: its loop does what a sum does as well."""
        summed, written = (self.time(self.counts.get(role, Count())) for role in ("sweep", "write"))
        both = max(self.time(self.counts["ring"]) - summed, written)
        return self.in_turns(mine, pieces, Loop(summed, reads), Loop(both, added, writes), begin)

    def in_turns(self, mine: Share, pieces: int, load: Loop, write: Loop, begin: float) -> Pass:
        """So many turns of a ring; loops: of a piece of it, of which a turn has several."""
        size = self.turn / THREADS
        load, write = (
            Loop(each.time * size, each.reads * size, each.writes * size) for each in (load, write)
        )
        return Pass(
            share=mine,
            pieces=pieces,
            windows=1,
            load=load,
            sweep=0,
            write=write,
            again=Loop(0),
            at_hand=pieces,
            begin=begin,
            window=self.between.window * self.ns,
            barrier=self.between.barrier * self.ns + self.model.skew,
            merge=self.between.merging(self.launch["ranks"], self.launch["group"], THREADS // WARP) * self.ns,
            early=self.early,
        )

    def loop(self, role: str, reads: float, writes: float, together: int) -> Loop:
        """A loop of so many blocks together; reads, writes: bytes of a piece of one of them."""
        count = self.counts[role]
        time = self.time(count) * together
        ahead = max(1.0, count.in_flight) * PIECE / max(reads, 1)  # in_flight counts all tensors
        return Loop(time, reads * together, writes * together, ahead)

    def time(self, count: Count) -> float:
        """Nanoseconds of a piece."""
        return cycles(count, self.hardware, self.model) * THREADS / WARP / self.hardware.ghz

    @property
    def sweep(self) -> float:
        """Nanoseconds of a piece. Value by value, lanes are idle behind the end of a plane."""
        if "sweep" not in self.counts:
            return 0
        plane = self.case.layer.height * self.case.layer.width
        idle = math.ceil(plane / WARP) * WARP / plane if self.layout == "planes" else 1
        return self.time(self.counts["sweep"]) * idle


def copied(device: str, moved: float, model: Model = MODEL) -> float:
    """Microseconds of a plain copy that moves so many bytes, half of them read."""
    hardware = DEVICES[device]
    active = hardware.multiprocessors
    time = cycles(COPIED, hardware, model) * THREADS / WARP / hardware.ghz
    loop = Loop(time, PIECE, PIECE, 2 * COPIED.in_flight)  # two blocks
    memory = Memory(share(hardware, active, replace(model, dram=1.0)), model.launch)
    now = streamed(memory, model.launch, max(1, math.ceil(moved / 2 / active / PIECE)), loop)
    return max(now, memory.free) / 1e3


def floor(device: str, case: Case, which: str) -> float:
    """Microseconds of the bytes that must be moved, at the bandwidth of a large copy."""
    return case.floor(which) / DEVICES[device].bandwidth / 1e3
