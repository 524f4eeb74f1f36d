"""Whether the kernels run at all on this device: one small case of each way to launch, in well under 40 s.

Forward, backward and evaluation by each row of the launch table against float64, then two streams at once.
Where it fails, tools/gpu_check ends, for nothing that follows could tell more. It is a process of its own,
for a launch that never ends can only be killed; each result is in the file at once.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bnfold.kernels.launch import ROWS, Device, Launch, plan
from bnfold.nn import kernel_calls
from bnfold.nn.words import Pointer
from tools._gpu import compile as compiling
from tools._gpu import modules, results
from tools._gpu.compile import KERNELS, Instance, problem
from tools._gpu.layers import Case, Layer

LITTLE = 24 * 1024  # bytes of shared memory, so that a small tensor needs many windows
# What a device may do less than it can, and layers at batch sizes: among them is a case for each row.
LESS: tuple[dict[str, Any], ...] = (
    {},
    {"clusters": 1},
    {"cooperative": False},
    {"clusters": 1, "cooperative": False, "shared_memory": LITTLE},
    {"clusters": 1, "multiprocessors": 4, "shared_memory": 80 * 1024},  # two turns of a ring
)
SMALL = tuple(
    (Layer(channels, height, width, {}), batch)
    for channels, height, width, batch in (
        (16, 5, 4, 3),
        (64, 14, 14, 32),
        (72, 14, 14, 32),
        (128, 14, 14, 32),
        (512, 14, 14, 8),
        (96, 56, 56, 8),
        (2, 112, 112, 16),
        (4, 113, 113, 16),
    )
)
KINDS = (("bfloat16", "channels_last"), ("float32", "NCHW"))  # each way runs in both
COMPILING = 20  # seconds for all kernels at most; a kernel that is not ready is compiled when it is launched
TURNS = 20  # launches on each of two streams


class Limited:
    """The device as one that can do less. launches: what was launched, in order."""

    def __init__(self, changes: dict[str, Any]) -> None:
        device: Any = kernel_calls.machine_of(torch.empty(0, device=results.DEVICE))
        limits = dataclasses.replace(device.limits, **changes)
        self.device, self.launches = dataclasses.replace(device, limits=limits), list[Launch]()

    @property
    def limits(self) -> Device:
        found: Device = self.device.limits
        return found

    def launch(
        self, launch: Launch, tensors: Sequence[Pointer | None], numbers: Sequence[Any], stream: int
    ) -> None:
        """As `CudaDevice.launch`."""
        self.device.launch(launch, tensors, numbers, stream)
        self.launches.append(launch)

    def rows(self) -> set[str]:
        """Those of the launch table that were taken."""
        return {launch.row for launch in self.launches}


@contextlib.contextmanager
def limited(changes: dict[str, Any]) -> Iterator[Limited]:
    """The device can do less meanwhile."""
    asked, machine = kernel_calls.machine_of, Limited(changes)
    kernel_calls.machine_of = lambda x: machine
    try:
        yield machine
    finally:
        kernel_calls.machine_of = asked


@dataclass(frozen=True)
class Way:
    """How a row of the launch table is reached: what the device does less meanwhile, and a small case."""

    row: str
    changes: dict[str, Any]
    case: Case
    cooperative: bool

    @property
    def name(self) -> str:
        return f"{self.row}, {self.case.type} {self.case.layout}"


def ways(limits: Device) -> list[Way]:
    """One for each row that a device can take, of each kind of tensor; the smallest first."""
    found: dict[tuple[str, str], Way] = {}
    for (type_, layout), less, (layer, batch) in product(KINDS, LESS, SMALL):
        if any(getattr(limits, name) < value for name, value in less.items()):
            continue  # it can do even less
        case = Case(layer, batch, type_, layout, "add_relu")
        less_of_it = dataclasses.replace(limits, **less)
        launch, back = (plan(problem(case, kernel), less_of_it) for kernel in ("forward", "backward"))
        assert launch is not None
        assert back is not None
        way = Way(launch.row, less, case, launch.cooperative)
        if back.row == way.row:
            found.setdefault((way.row, way.name), way)
    order = [row.name for row in ROWS]
    return sorted(found.values(), key=lambda way: order.index(way.row))


def kernels(tries: Sequence[Way], limits: Device) -> list[Instance]:
    """All that they launch."""
    found = (
        plan(problem(way.case, kernel), dataclasses.replace(limits, **way.changes))
        for way in tries
        for kernel in KERNELS
    )
    return list(dict.fromkeys((launch.source, launch.kernel) for launch in found if launch is not None))


def tried(way: Way) -> dict[str, Any]:
    """One way: its errors, and what is wrong, if anything."""
    start = time.monotonic()
    with limited(way.changes) as machine:
        found = modules.checked(way.case, modules.Tensors.drawn(way.case, results.DEVICE))
    taken = machine.rows() - {"stream"}
    wrong = [found["failure"]] if found["failure"] else []
    if way.row not in taken:
        wrong.append(f"the row was not taken, but {', '.join(sorted(taken)) or 'none'}")
    return {
        "failure": "; ".join(wrong),
        "errors": found["errors"],
        "rows": {which: each and each["kernel"] for which, each in found["rows"].items()},
        "seconds": round(time.monotonic() - start, 2),
    }


def two_streams(way: Way) -> dict[str, Any]:
    """Grids whose blocks wait for each other, on two streams: they give what they give alone, and all end."""
    start = time.monotonic()
    with limited(way.changes):
        inputs = [modules.Tensors.drawn(way.case, results.DEVICE).x.detach() for _ in range(2)]
        alone = [kernel_calls.statistics(x) for x in inputs]
        synchronize()
        lanes, found = streams(), list[tuple[int, Sequence[Tensor]]]()
        for _ in range(TURNS):
            for number, (lane, x) in enumerate(zip(lanes, inputs, strict=True)):
                with lane:
                    found.append((number, kernel_calls.statistics(x)))
        synchronize()
    same = all(same_bits(a, b) for number, got in found for a, b in zip(got, alone[number], strict=True))
    failure = "" if same else "not the same bits as alone"
    return {"failure": failure, "launches": len(found), "seconds": round(time.monotonic() - start, 2)}


def streams() -> list[Any]:
    """Contexts in which work is queued on a stream each."""
    if results.DEVICE != "cuda":
        return [contextlib.nullcontext(), contextlib.nullcontext()]
    made: Any = torch.cuda.Stream
    return [torch.cuda.stream(made()) for _ in range(2)]


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a, b)


def synchronize() -> None:
    if results.DEVICE == "cuda":
        torch.cuda.synchronize()


def attempted(work: Any, *arguments: Any) -> dict[str, Any]:
    """What it gives, or why it does not."""
    try:
        found: dict[str, Any] = work(*arguments)
        synchronize()
    except Exception as error:  # of any kind: it is the result
        return {"failure": f"{type(error).__name__}: {error}"[:1000]}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="preflight", description=__doc__)
    parser.add_argument("--output", type=Path, help="the file (default: by the device, in bench/results)")
    given = parser.parse_args()
    stored = results.opened("preflight", given.output, False)
    device: Any = kernel_calls.machine_of(torch.empty(0, device=results.DEVICE))
    limits: Device = device.limits
    part: dict[str, Any] = {"limits": {**vars(limits), "capability": list(limits.capability)}, "ways": {}}
    stored.data["preflight"] = part
    stored.save()
    print(f"limits: {part['limits']}")

    def note(name: str, found: dict[str, Any]) -> None:
        part["ways"][name] = found
        stored.save()
        print(f"{name}: {found['failure'] or 'ok'}, {found.get('seconds', 0)} s", flush=True)

    tries = ways(limits)
    part["compiled"] = compiling.compile_all(kernels(tries, limits), device.arch, COMPILING)
    for way in tries:
        note(way.name, attempted(tried, way))
    together = {way.row: way for way in reversed(tries) if way.cooperative}
    for row, way in together.items():
        note(f"{row} on two streams", attempted(two_streams, way))
    return int(any(each["failure"] for each in part["ways"].values()))


if __name__ == "__main__":
    raise SystemExit(main())
