"""The devices that the model knows, a table; where each number comes from is said in it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

REACHED = 4.3 / 4.8  # of a data sheet's bandwidth, by a large copy: an H200's, assumed of all


@dataclass(frozen=True)
class Hardware:
    """One device.

    at_once: clusters of 2, 4 and 8 blocks that run at one time, a block to each multiprocessor; (): it has
    none. shared: bytes of shared memory that a block may have. peak, l2_peak: bytes a nanosecond of memory
    and of the second-level cache. l2: bytes of that. ghz: clock of the multiprocessors under load. threads:
    of a multiprocessor. source: where the numbers are from.
    """

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    shared: int
    at_once: tuple[int, ...]
    peak: float
    l2: int
    l2_peak: float
    ghz: float
    threads: int
    source: str

    @property
    def arch(self) -> str:
        return "sm_{}{}".format(*self.capability)

    @property
    def bandwidth(self) -> float:
        """Bytes a nanosecond of a large copy: the floor's."""
        return self.peak * REACHED


_HOPPER = (
    "SXM. Multiprocessors, memory and L2: data sheet. Clock: 1.98 GHz at most, 1.755 assumed under load. "
    "L2 bandwidth: measured by others (5.5 TB/s). Clusters: six parts of 16 multiprocessors and two of 18, "
    "assumed."
)
DEVICES = {
    each.name: each
    for each in (
        Hardware(
            "H200", (9, 0), 132, 227 * 1024, (66, 32, 16), 4800, 50 * 2**20, 5500, 1.755, 2048, _HOPPER
        ),
        Hardware(
            "H100", (9, 0), 132, 227 * 1024, (66, 32, 16), 3350, 50 * 2**20, 5500, 1.755, 2048, _HOPPER
        ),
        Hardware(
            "A100", (8, 0), 108, 163 * 1024, (), 2039, 40 * 2**20, 4000, 1.41, 2048,
            "A100 SXM, 80 GB. Multiprocessors, memory, L2 and clock: data sheet. L2 bandwidth: assumed.",
        ),
        Hardware(
            "L4", (8, 9), 58, 99 * 1024, (), 300, 48 * 2**20, 2500, 1.5, 1536,
            "Multiprocessors, memory and L2: data sheet. Clock (2.04 GHz at most, 72 W) and L2 bandwidth: "
            "assumed.",
        ),
    )
}  # fmt: skip


def limits(hardware: Hardware, device: Any) -> Any:
    """What the launch table asks of a device, as its class `Device` has it, older or newer."""
    known = {
        "capability": hardware.capability,
        "multiprocessors": hardware.multiprocessors,
        "shared_memory": hardware.shared,
        "clusters": 8 if hardware.at_once else 1,
        "cooperative": True,
        "at_once": hardware.at_once,
    }
    return device(
        **{field.name: known[field.name] for field in dataclasses.fields(device) if field.name in known}
    )
