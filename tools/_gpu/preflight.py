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
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bnfold.kernels.launch import ROWS, Device, Launch
from bnfold.nn import kernel_calls
from tools._gpu import modules, results
from tools._gpu.layers import Case, Layer

LITTLE = 24 * 1024  # bytes of shared memory, so that a small tensor needs many windows
# By row of the launch table: what the device can do less, so that the row is taken, a layer and a batch.
WAYS: dict[str, tuple[dict[str, Any], Layer, int]] = {
    "one block": ({}, Layer(16, 5, 4, {}), 3),
    "cluster": ({"cooperative": False}, Layer(64, 14, 14, {}), 32),
    "cooperative grid": ({"clusters": 1}, Layer(64, 14, 14, {}), 32),
    "one block, windows": (
        {"clusters": 1, "cooperative": False, "shared_memory": LITTLE},
        Layer(64, 14, 14, {}),
        32,
    ),
}
KINDS = (("bfloat16", "channels_last"), ("float32", "NCHW"))  # each way runs in both
TURNS = 20  # launches on each of two streams


class Limited:
    """A device as one that can do less. launches: what was launched, in order."""

    def __init__(self, device: Any, changes: dict[str, Any]) -> None:
        limits = dataclasses.replace(device.limits, **changes)
        self.device, self.launches = dataclasses.replace(device, limits=limits), list[Launch]()

    @property
    def limits(self) -> Device:
        found: Device = self.device.limits
        return found

    def launch(
        self, launch: Launch, tensors: Sequence[Tensor | None], numbers: Sequence[Any], stream: int
    ) -> None:
        """As `CudaDevice.launch`."""
        self.device.launch(launch, tensors, numbers, stream)
        self.launches.append(launch)


@contextlib.contextmanager
def limited(changes: dict[str, Any]) -> Iterator[Limited]:
    """The device can do less meanwhile."""
    asked = kernel_calls.machine_of
    machine = Limited(asked(torch.empty(0, device=results.DEVICE)), changes)
    kernel_calls.machine_of = lambda x: machine
    try:
        yield machine
    finally:
        kernel_calls.machine_of = asked


def fits(row: str, device: Device) -> bool:
    """Whether the device has what a row needs."""
    return {"cluster": device.clusters > 1, "cooperative grid": device.cooperative}.get(row, True)


def tried(row: str, kind: str, layout: str) -> dict[str, Any]:
    """One way: its errors, and what is wrong, if anything."""
    changes, layer, batch = WAYS[row]
    case = Case(layer, batch, kind, layout, "add_relu")
    start = time.monotonic()
    with limited(changes) as machine:
        found = modules.checked(case, modules.Tensors.drawn(case, results.DEVICE))
    taken = {launch.row for launch in machine.launches if launch.row != "stream"}
    wrong = [found["failure"]] if found["failure"] else []
    if row not in taken:
        wrong.append(f"the row was not taken, but {', '.join(sorted(taken)) or 'none'}")
    return {
        "failure": "; ".join(wrong),
        "errors": found["errors"],
        "rows": {which: each and each["kernel"] for which, each in found["rows"].items()},
        "seconds": round(time.monotonic() - start, 2),
    }


def two_streams() -> dict[str, Any]:
    """Cooperative grids on two streams give what they give alone, and both end."""
    start = time.monotonic()
    changes, layer, batch = WAYS["cooperative grid"]
    case = Case(layer, batch, *KINDS[0], "alone")
    with limited(changes):
        inputs = [modules.Tensors.drawn(case, results.DEVICE).x.detach() for _ in range(2)]
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

    for row in ROWS:
        for kind, layout in KINDS if fits(row.name, limits) else ():
            note(f"{row.name}, {kind} {layout}", attempted(tried, row.name, kind, layout))
    if limits.cooperative:
        note("two streams", attempted(two_streams))
    return int(any(each["failure"] for each in part["ways"].values()))


if __name__ == "__main__":
    raise SystemExit(main())
