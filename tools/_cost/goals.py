"""What the model says of a snapshot: the kernels' goals, and how they move if an assumption is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tools._cost.assumptions import MODEL, OTHERWISE, Model
from tools._cost.predict import Snapshot, copied, floor, predicted
from tools._gpu.goals import alone
from tools._gpu.layers import Case

DEVICE, BATCH, LAYOUT = "H200", 128, "channels_last"
KINDS = ("bfloat16", "float16")
TRAINING = ("forward", "backward")


@dataclass(frozen=True)
class Layers:
    """Some layers, and which part of the floor's bandwidth, or of a copy's of equal size, their passes must
    reach.

    least, most: bytes of one tensor. passes: each must reach it; (): all together.
    """

    text: str
    least: float
    most: float
    passes: tuple[str, ...]
    part: float
    of_copy: bool


GOALS = (
    Layers("forward and backward over all 53 layers", 0, 1e12, (), 0.75, False),
    Layers("forward, layers of 100 MB and more", 100e6, 1e12, ("forward",), 0.80, False),
    Layers("backward, layers of 100 MB and more", 100e6, 1e12, ("backward",), 0.70, False),
    Layers("forward, layers of 25 to 100 MB, against a copy", 25e6, 100e6, ("forward",), 0.65, True),
    Layers("backward, layers of 25 to 100 MB, against a copy", 25e6, 100e6, ("backward",), 0.65, True),
)
OFF_CHIP = 25e6  # bytes of a tensor


def reached(snapshot: Snapshot, goal: Layers, kind: str, model: Model = MODEL) -> tuple[float, str]:
    """The smallest part that a pass reaches, and where; or that of all of them."""
    wanted = [(case, n) for case, n in alone(BATCH, kind, LAYOUT) if goal.least <= case.tensor < goal.most]
    if not goal.passes:
        return together(snapshot, wanted, TRAINING, model), ""
    found = []
    for case, _ in wanted:
        for which in goal.passes:
            best = copied(DEVICE, case.floor(which), model) if goal.of_copy else floor(DEVICE, case, which)
            found.append((best / predicted(snapshot, DEVICE, case, which, model), case.layer.name))
    return min(found)


def together(
    snapshot: Snapshot, wanted: Sequence[tuple[Case, int]], passes: Sequence[str], model: Model = MODEL
) -> float:
    """The part of the floor's bandwidth that so many of each case reach."""
    least = taken = 0.0
    for case, n in wanted:
        for which in passes:
            least += n * floor(DEVICE, case, which)
            taken += n * predicted(snapshot, DEVICE, case, which, model)
    return least / taken


def decided(snapshot: Snapshot, model: Model = MODEL) -> list[dict[str, Any]]:
    """Each goal for each type: what is reached, and whether that is enough."""
    rows = []
    for kind in KINDS:
        for goal in GOALS:
            part, where = reached(snapshot, goal, kind, model)
            rows.append(
                {
                    "type": kind,
                    "goal": goal.text,
                    "at_least": goal.part,
                    "reached": round(part, 3),
                    "where": where,
                    "holds": part >= goal.part,
                }
            )
    return rows


def sensitivity(snapshot: Snapshot) -> dict[str, dict[str, float]]:
    """What the bfloat16 kernels reach of the floor's bandwidth over all 53 layers, by assumption.

    large: what backward of each layer of 100 MB and more reaches at least.
    """
    found = {}
    wanted = alone(BATCH, KINDS[0], LAYOUT)
    for name, model in {"as it is": MODEL, **OTHERWISE}.items():
        each = {which: together(snapshot, wanted, (which,), model) for which in TRAINING}
        each["both"] = together(snapshot, wanted, TRAINING, model)
        each["large"], _ = reached(snapshot, GOALS[2], KINDS[0], model)
        found[name] = {which: round(part, 3) for which, part in each.items()}
    return found
