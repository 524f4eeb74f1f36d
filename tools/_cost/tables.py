"""The results of tools/kernel_cost as docs/performance.md shows them: counts, times of the model, goals."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

from tools._common import markdown
from tools._cost.goals import BATCH, DEVICE, TRAINING
from tools._cost.loops import FUSIONS, ROLES, named
from tools._cost.predict import Snapshot, copied, floor
from tools._gpu.goals import alone

PIPES = {"alu": "ALU", "fma": "FMA", "imad": "IMAD", "shared": "shared memory", "through": "L1"}
COUNTED = ("kernel", "loop", "instructions", "with ReLU", "with sum and ReLU", *PIPES.values())
TYPES = {"bfloat16": "bnfold::bfloat16", "float16": "bnfold::half", "float32": "float"}
SPLIT = {"channels_last": ("columns",), "NCHW": ("plane", "planes")}


def counted(snapshot: Snapshot, kind: str, layout: str, arch: str) -> Iterator[tuple[object, ...]]:
    """Each loop of the kernels of a type and layout. Those of other exchanges are alike, but for rings."""
    seen = set()
    for each in snapshot.data["instances"]:
        about = named(each["kernel"])
        ring = about.exchange.replace("_", " ") if "ring" in about.exchange else ""
        key = (about.kernel, about.layout, ring)
        if (
            each["arch"] != arch
            or about.type != TYPES[kind]
            or about.layout not in SPLIT[layout]
            or key in seen
        ):
            continue
        seen.add(key)
        loops = each["loops"]
        for role in (role for role in ROLES if role in loops):
            first = loops[role]["alone"]
            issued = [round(loops[role].get(fusion, first).get("issue", 0)) for fusion in FUSIONS[:3]]
            rest = (round(first.get(name, 0)) for name in PIPES)
            words = [
                about.kernel,
                *([about.layout] if layout == "NCHW" else []),
                *([ring] if ring else []),
            ]
            yield (", ".join(words), role, *issued, *rest)


def counts(result: dict[str, Any]) -> str:
    """What bfloat16 kernels with channels last execute, before and now."""
    rows = [
        (name, *row)
        for name, snapshot in result["snapshots"].items()
        for row in counted(Snapshot(snapshot), "bfloat16", "channels_last", "sm_90")
    ]
    return "\n".join(markdown(("", *COUNTED), rows, "lll"))


def layers(result: dict[str, Any]) -> str:
    """Floor, a copy, and the kernels' times in the model."""
    names = list(result["snapshots"])
    rows = []
    for case, count in alone(BATCH, "bfloat16", "channels_last"):
        cells: list[object] = [case.layer.name, count, f"{case.tensor / 1e6:.0f}"]
        for i, which in enumerate(TRAINING):
            least = floor(DEVICE, case, which)
            cells += [f"{least:.1f}", f"{least / copied(DEVICE, case.floor(which)):.0%}"]
            for name in names:
                us = result["snapshots"][name]["us"][case.key][DEVICE][i]
                cells.append(f"{us:.1f} ({least / us:.0%})")
        rows.append(cells)
    columns = [f"{which}: {what}" for which in TRAINING for what in ("floor, us", "a copy", *names)]
    return "\n".join(markdown(("layer", "count", "MB", *columns), rows))


def headings(result: dict[str, Any]) -> list[str]:
    return ["goal", "type", "at least", *result["goals"]]


def decided(result: dict[str, Any]) -> Iterator[tuple[object, ...]]:
    """Each goal, and what each snapshot reaches."""
    columns = list(result["goals"].values())
    for row in zip(*columns, strict=True):
        first = row[0]
        cells = (f"{each['reached']:.0%}{', met' if each['holds'] else ', not met'}" for each in row)
        yield (first["goal"], first["type"], f"{first['at_least']:.0%}", *cells)


def goals(result: dict[str, Any]) -> str:
    """The goals in the model, and what its assumptions weigh."""
    lines = markdown(headings(result), decided(result), "ll")
    return "\n".join([*lines, "", textwrap.fill(sensitive(result), 118)])


def sensitive(result: dict[str, Any]) -> str:
    """What the newest kernels reach if an assumption is another: all layers, and backward of large ones."""
    found = next(reversed(result["sensitivity"].values()))
    both, large = (
        ", ".join(f"{name} {each[which]:.0%}" for name, each in found.items()) for which in ("both", "large")
    )
    return (
        f"Forward and backward over all 53 layers in bfloat16, by assumption: {both}. "
        f"Backward, each layer of 100 MB and more: {large}."
    )
