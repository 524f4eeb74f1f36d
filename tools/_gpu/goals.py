"""What the times say: bandwidths, ratios, sums over the network, and which goals hold. Without torch.

`result` is the content of one bench/results/gpu_*.json. A number that was not measured is None, and a goal
that needs it is neither reached nor missed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tools._gpu.layers import LAYERS, PASSES, Case, cases

BATCH = 128  # of all goals
LARGE, MIDDLE = 25e6, 12e6  # bytes of one tensor
ENOUGH = 0.85  # of the copy bandwidth
FASTER = 2.0  # times torch


@dataclass(frozen=True)
class Goal:
    """holds: None if it was not measured. detail: the numbers that decide."""

    text: str
    holds: bool | None
    detail: str


def us(result: dict[str, Any], case: Case, which: str, contender: str) -> float | None:
    """Microseconds, the median; none of bnfold's where its results are wrong or torch stood in for it."""
    record = result.get("cases", {}).get(case.key, {})
    if contender == "bnfold" and record.get("failure"):
        return None
    found = record.get("us", {}).get(which, {}).get(contender)
    return None if found is None else float(found["median"])


def torch_us(result: dict[str, Any], case: Case, which: str) -> float | None:
    """Of torch's modules in eager mode, with cuDNN where torch picks it."""
    found = us(result, case, which, "cudnn")
    return us(result, case, which, "native") if found is None else found


def ratio(result: dict[str, Any], case: Case, which: str) -> float | None:
    """How many times as long torch takes."""
    ours, theirs = us(result, case, which, "bnfold"), torch_us(result, case, which)
    return None if ours is None or theirs is None else theirs / ours


def bandwidth(case: Case, which: str, microseconds: float) -> float:
    """GB/s, of the bytes that must be moved."""
    return case.floor(which) / microseconds / 1e3


def fraction(result: dict[str, Any], case: Case, which: str, contender: str = "bnfold") -> float | None:
    """That bandwidth as a part of a large copy's."""
    found, copy = us(result, case, which, contender), result.get("copy", {}).get("gb_per_s")
    return None if found is None or copy is None else bandwidth(case, which, found) / copy


def total(result: dict[str, Any], wanted: Iterable[tuple[Case, int]], which: str, ours: bool) -> float | None:
    """Microseconds of so many of each case, or None if one is missing."""
    sum_ = 0.0
    for case, count in wanted:
        found = us(result, case, which, "bnfold") if ours else torch_us(result, case, which)
        if found is None:
            return None
        sum_ += count * found
    return sum_


def alone(batch: int, kind: str, layout: str) -> list[tuple[Case, int]]:
    """All 53 batch norms, with nothing behind them."""
    return [(Case(layer, batch, kind, layout, "alone"), layer.count) for layer in LAYERS]


def as_used(batch: int, kind: str, layout: str) -> list[tuple[Case, int]]:
    """All 53 batch norms, with what follows them in the network."""
    return [
        (Case(layer, batch, kind, layout, fusion), count)
        for layer in LAYERS
        for fusion, count in layer.counts.items()
    ]


@dataclass(frozen=True)
class Sum:
    """Milliseconds of a pass through all layers."""

    title: str
    which: str
    ours: float
    torch: float


def sums(result: dict[str, Any]) -> Iterator[Sum]:
    """Of every batch size, type and layout that was measured on all layers."""
    kinds = dict.fromkeys((case.batch, case.type, case.layout) for case in cases())
    for batch, kind, layout in kinds:
        for what, chosen in (("alone", alone), ("with ReLU and sum", as_used)):
            for which in PASSES:
                wanted = chosen(batch, kind, layout)
                ours, theirs = (total(result, wanted, which, each) for each in (True, False))
                if ours is not None and theirs is not None:
                    title = f"batch {batch}, {kind}, {layout}, {what}"
                    yield Sum(title, which, ours / 1e3, theirs / 1e3)


def goals(result: dict[str, Any]) -> list[Goal]:
    """Those of the project, on this device."""
    return [_bandwidths(result), _network(result), _cudnn(result), _chain(result), _memory(result)]


def _bandwidths(result: dict[str, Any]) -> Goal:
    text = f"at least {ENOUGH:.0%} of the copy bandwidth in training on every layer of 25 MB or more"
    measured = [
        (found, f"{case.layer.name} {case.type} {case.layout} {which}")
        for case in cases(batches=[BATCH], fusions=["alone"])
        for which in ("forward", "backward")
        if case.tensor >= LARGE and (found := fraction(result, case, which)) is not None
    ]
    if not measured:
        return Goal(text, None, "")
    reached = sum(found >= ENOUGH for found, _ in measured)
    least, where = min(measured)
    detail = f"{reached} of {len(measured)} passes; the least is {least:.0%}, {where}"
    return Goal(text, reached == len(measured), detail)


def _network(result: dict[str, Any]) -> Goal:
    text = f"bfloat16, channels last, training pass over all 53 layers: at least {FASTER:g} times torch"
    wanted = alone(BATCH, "bfloat16", "channels_last")
    parts = [[total(result, wanted, which, ours) for which in PASSES[:2]] for ours in (True, False)]
    sums_ = [sum(part) for part in parts if None not in part]  # type: ignore[arg-type]
    if len(sums_) < 2:
        return Goal(text, None, "")
    ours, theirs = sums_
    detail = f"{theirs / ours:.2f} times: {ours / 1e3:.2f} ms, torch {theirs / 1e3:.2f} ms"
    return Goal(text, theirs / ours >= FASTER, detail)


def _cudnn(result: dict[str, Any]) -> Goal:
    text = "float16, channels last: not slower than cuDNN on any layer over 12 MB"
    measured = []
    for case in cases([BATCH], ["float16"], ["channels_last"], ["alone"]):
        for which in ("forward", "backward"):
            ours, theirs = (us(result, case, which, name) for name in ("bnfold", "cudnn"))
            if case.tensor > MIDDLE and ours is not None and theirs is not None:
                measured.append((theirs / ours, f"{case.layer.name} {which}"))
    if not measured:
        return Goal(text, None, "")
    reached = sum(found >= 1 for found, _ in measured)
    least, where = min(measured)
    detail = f"{reached} of {len(measured)} passes; the least is {least:.2f} times cuDNN, {where}"
    return Goal(text, reached == len(measured), detail)


def _chain(result: dict[str, Any]) -> Goal:
    text = f"batch norm, addition and ReLU, forward and backward: at least {FASTER:g} times torch's modules"
    measured = []
    for case in cases([BATCH], ["bfloat16"], ["channels_last"], ["add_relu"]):
        parts = [[total(result, [(case, 1)], which, ours) for which in PASSES[:2]] for ours in (True, False)]
        sums_ = [sum(part) for part in parts if None not in part]  # type: ignore[arg-type]
        if case.in_network and len(sums_) == 2:
            measured.append((sums_[1] / sums_[0], case.layer.name))
    if not measured:
        return Goal(text, None, "")
    least, where = min(measured)
    detail = f"the least is {least:.2f} times, {where}, the most {max(measured)[0]:.2f} times"
    return Goal(text, least >= FASTER, detail)


def _memory(result: dict[str, Any]) -> Goal:
    text = "fewer bytes saved for backward than torch's modules"
    found = result.get("memory", {})
    if not found:
        return Goal(text, None, "")
    parts = {name: [each[who]["saved"] for who in ("bnfold", "torch")] for name, each in found.items()}
    shown = (f"{name} {ours / 1e6:.1f} of {theirs / 1e6:.1f} MB" for name, (ours, theirs) in parts.items())
    detail = ", ".join(shown)
    return Goal(text, all(ours < theirs for ours, theirs in parts.values()), detail)
