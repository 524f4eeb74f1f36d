"""New nodes: behind a node, between a node and its readers, or instead of several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bnfold.onnx_graph.model.surgery import Surgery
from bnfold.onnx_graph.site import Site, Value

__all__ = ["append", "emit", "only_reader", "same_shape", "take_over"]


def only_reader(value: Value | None) -> Site | None:
    """The node that alone reads a value, in the same graph; None for a graph output."""
    if value is None or value.is_output or value.count != 1:
        return None
    reader = next(site for site, slot in value.uses if site.alive and site.values[slot] is value)
    return reader if reader.scope is value.scope else None


def same_shape(a: Value, b: Value) -> bool:
    """Certainly equal: sizes that are known, or have the same name."""
    return a.shape is not None and a.shape == b.shape and None not in a.shape


def emit(
    surgery: Surgery, op: str, inputs: Sequence[Value], stem: str, after: Site, **attributes: Any
) -> Value:
    """The output, named after `stem`, of a new node of the default domain behind `after`."""
    value = surgery.value(stem, after.scope)
    value.dtype = inputs[0].dtype
    surgery.node(op, surgery.name(f"{stem}_{op.lower()}"), inputs, [value], after, **attributes)
    return value


def append(
    surgery: Surgery,
    y: Value,
    stem: str,
    op: tuple[str, str],
    more: Sequence[Value],
    after: Site,
    **attributes: Any,
) -> Value:
    """Let a new node behind `after` give `y`, from what was `y` so far, and `more`.

    op: operator and name of the node. Returns what was `y`, now under a name made of `stem`.
    """
    maker, slot = y.site, y.slot
    assert maker is not None
    inner = surgery.value(stem, y.scope, y)
    inner.site, inner.slot, maker.outputs[slot] = maker, slot, inner
    maker.node.output[slot] = inner.name
    surgery.node(*op, [inner, *more], [y], after, **attributes)
    return inner


def take_over(
    surgery: Surgery,
    last: Site,
    slot: int,
    op: tuple[str, str],
    inputs: Sequence[Value],
    name: str,
    **attributes: Any,
) -> None:
    """A new node right behind `last` gives one of its outputs instead. op: domain and operator.

    Kill `last` once all its outputs are taken. What it alone read is left without readers then:
    `Surgery.finish` removes the nodes that computed it.
    """
    y = last.outputs[slot]
    assert y is not None
    domain, op_type = op
    site = surgery.node(op_type, name or f"{y.name}_bnfold", inputs, [y], last, **attributes)
    site.node.domain, last.outputs[slot] = domain, None
    site.op = f"{domain}.{op_type}" if domain else op_type
