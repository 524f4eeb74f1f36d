"""Which nodes of a folded model stay float32 when the rest becomes half precision, and why."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bnfold.fold.rescale.headroom import Narrow
from bnfold.onnx_graph.model.constants import constant_of
from bnfold.onnx_graph.ops.operator import Half
from bnfold.onnx_graph.ops.table import record_of
from bnfold.onnx_graph.site import Scope, Site, Value
from bnfold.passes.half.ranges import Range
from bnfold.passes.half.slots import Slots, float32_slots, of_function, schema_of, slots_of

__all__ = ["MARGIN", "Plan", "plan"]

# How many times as large as measured a value may become on other inputs.
MARGIN = 8.0
_FLOAT = 1  # TensorProto.FLOAT, as the attribute stash_type has it
_INTEGERS = frozenset((2, 3, 4, 5, 6, 7, 12, 13))  # of TensorProto's types
_COUNTING = Half.COUNTS | Half.PASSES  # half precision has integers up to 2048


@dataclass
class Plan:
    """slots: what of each node may be half. stays: the reason of each node that remains float32 instead."""

    slots: dict[Site, Slots] = field(default_factory=dict)
    stays: dict[Site, str] = field(default_factory=dict)

    def is_half(self, site: Site) -> bool:
        """Whether the node computes in half precision."""
        return site in self.slots and site not in self.stays


def plan(
    scope: Scope,
    narrow: Narrow,
    ranges: Mapping[str, Range],
    troubled: Mapping[Site, str],
    typeless: frozenset[tuple[str, str, str]] = frozenset(),
    *,
    guarded: bool = True,
) -> Plan:
    """Decide for each node of the graph.

    Args:
        scope: the graph, read.
        narrow: the half type.
        ranges: of its tensors, by name, as far as they were measured.
        troubled: nodes whose weights or inputs the type cannot hold, and why.
        typeless: functions that may be called with the half type.
        guarded: False: only what the operators refuse stays float32, whatever the numbers are.
    """
    found = Plan()
    for site in scope.sites:  # those in bodies of control flow stay as they are
        if not (site.bodies or float32_slots(site.values) or float32_slots(site.outputs)):
            continue
        if _is_constant(site):
            continue  # stored in whatever type its readers need
        why = record_of(site.op).float32
        slots = (why(site) if callable(why) else why) or of_function(site, scope.model, typeless)
        slots = slots or slots_of(site, narrow.name)
        if isinstance(slots, str):
            found.stays[site] = slots
            continue
        found.slots[site] = slots
        reason = troubled.get(site) or _numbers(site, slots, narrow, ranges) if guarded else ""
        if reason:
            found.stays[site] = reason
    if guarded:
        _protected(found, narrow)
        _counted(found)
        _surrounded(found)
    return found


def _does(site: Site, what: Half) -> bool:
    """Whether its operator does any of these."""
    return bool(record_of(site.op).half & what)


def _is_constant(site: Site) -> bool:
    value = site.outputs[0] if site.outputs else None
    return value is not None and constant_of(value) is not None and site.op != "DequantizeLinear"


def _numbers(site: Site, slots: Slots, narrow: Narrow, ranges: Mapping[str, Range]) -> str:
    """What of a node's numbers the type cannot hold, in words; "" if nothing."""
    return next(filter(None, _reasons(site, slots, narrow, ranges)), "")


def _reasons(site: Site, slots: Slots, narrow: Narrow, ranges: Mapping[str, Range]) -> Iterator[str]:
    values = [site.values[slot] for slot in sorted(slots.inputs)]
    for value in values + [site.outputs[j] for j in sorted(slots.outputs)]:
        assert value is not None
        constant = constant_of(value)
        if constant is None:
            yield _range(value, narrow, ranges)
        else:
            yield _constant(site, value, np.asarray(constant.load()), narrow)
    yield _inside(site, narrow, ranges)


def _range(value: Value, narrow: Narrow, ranges: Mapping[str, Range]) -> str:
    seen = ranges.get(value.name)
    if seen is None:
        return ""
    if seen.largest * MARGIN > narrow.largest:
        return f"{value.name} reaches {seen.largest:.3g}, too near {narrow.name}'s largest number"
    if 0 < seen.largest < narrow.tiny:
        return (
            f"{value.name} only reaches {seen.largest:.3g}, less than {narrow.name}'s smallest normal number"
        )
    return ""


def _constant(site: Site, value: Value, array: Any, narrow: Narrow) -> str:
    size = np.abs(array[np.isfinite(array)]) if array.dtype.kind == "f" else np.zeros(0)
    largest = float(size.max(initial=0))
    if largest > narrow.largest and site.op != "Clip":  # no bound is what such a bound of a Clip means
        return f"its constant {value.name} reaches {largest:.3g}, beyond {narrow.name}'s largest number"
    if _is_lost(array, narrow) and not _does(site, Half.WEIGHTS):
        return f"its constant {value.name} only reaches {largest:.3g}, and would vanish in {narrow.name}"
    return ""


def _is_lost(array: Any, narrow: Narrow) -> bool:
    """Whether a constant is nothing but subnormal numbers."""
    return array.dtype.kind == "f" and 0 < float(np.abs(array).max(initial=0)) < narrow.tiny


def _inside(site: Site, narrow: Narrow, ranges: Mapping[str, Range]) -> str:
    """A sum inside the node that could overflow where a runtime keeps it in half precision."""
    source, half = site.values[0] if site.values else None, record_of(site.op).half
    seen = ranges.get(source.name) if source is not None else None
    if site.op == "BatchNormalization" and site.attr("training_mode", 0):
        return "computes a variance, a sum of squares"
    if seen is None or not half & (Half.SUMS | Half.SQUARES):
        return ""
    schema = schema_of(site.op, site.opset)
    if schema is not None and "stash_type" in schema.attributes and site.attr("stash_type", _FLOAT) == _FLOAT:
        return ""  # the standard has it compute in float32
    count = _count(site, seen, ranges)
    power, word = (2, "squares") if Half.SQUARES in half else (1, "numbers")
    if seen.largest**power * count > narrow.largest:
        return f"adds up {count} {word} of up to {seen.largest**power:.3g}"
    return ""


def _count(site: Site, seen: Range, ranges: Mapping[str, Range]) -> int:
    """How many entries are summed, at most."""
    whole = math.prod(seen.shape)
    made = site.outputs[0]
    after = ranges.get(made.name) if made is not None else None
    if after is not None and 0 < math.prod(after.shape) < whole:
        return whole // math.prod(after.shape)
    kernel = site.attr("kernel_shape")
    if kernel:
        return math.prod(kernel)
    return (
        whole // max(math.prod(seen.shape[:2]), 1) if len(seen.shape) > 2 else max(seen.shape[-1:], default=1)
    )


def _protected(found: Plan, narrow: Narrow) -> None:
    """What reads a sum with a number that half precision would lose, to divide by it or take its root."""
    pending = []
    for site in found.stays:
        known = [constant_of(value) for value in site.values if value is not None]
        lost = any(c is not None and _is_lost(np.asarray(c.load()), narrow) for c in known)
        if lost and not _does(site, Half.WEIGHTS):
            pending.append((site, site.name))
    while pending:
        site, source = pending.pop()
        for reader in _readers(site):
            if _does(reader, Half.SINGULAR | Half.PASSES) and found.is_half(reader):
                found.stays[reader] = f"reads what {source} keeps from being zero"
                if reader.op != "Div":
                    pending.append((reader, source))


def _counted(found: Plan) -> None:
    """What computes integers in floating point."""
    pending = [site for site in found.slots if site.op == "Cast" and site.attr("to") in _INTEGERS]
    while pending:
        site = pending.pop()
        if found.is_half(site):
            found.stays[site] = "computes integers"
            pending += [maker for maker in _makers(site) if maker is not None and _does(maker, _COUNTING)]


def _makers(site: Site) -> list[Site | None]:
    """What computes the float32 values that a node reads; None for an input of the graph."""
    values = [value for value in site.values if value is not None and value.dtype == "float32"]
    return [value.site for value in values if constant_of(value) is None]


def _readers(site: Site) -> list[Site]:
    values = [value for value in site.outputs if value is not None]
    return [reader for value in values for reader, _ in value.uses if reader.alive]


def _surrounded(found: Plan) -> None:
    """Nodes that change no number, with float32 all around: to convert them would only add Casts."""
    passing = [site for site in found.slots if _does(site, Half.PASSES)]
    while more := [site for site in passing if found.is_half(site) and _is_between(site, found)]:
        found.stays.update(dict.fromkeys(more, "stands between nodes that stay float32"))


def _is_between(site: Site, found: Plan) -> bool:
    """Whether all that makes what a node reads, and all that reads what it makes, stays float32."""
    makers, readers = _makers(site), _readers(site)
    around = all(maker in found.stays for maker in makers) and not any(map(found.is_half, readers))
    return around and bool(makers and readers)
