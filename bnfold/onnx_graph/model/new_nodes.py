"""New nodes: behind a node, between a node and its readers, or instead of several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onnx import helper

from bnfold.onnx_graph.model.site import Site, Value
from bnfold.onnx_graph.model.surgery import Surgery

__all__ = ["append", "emit", "only_reader", "same_shape", "take_over"]


def only_reader(value: Value) -> Site | None:
    """The node that alone reads a value, in the same graph; None for a graph output."""
    if value.is_output or value.count != 1:
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
    value = Value(surgery.name(stem), after.scope, None, 0)
    value.dtype = inputs[0].dtype
    site = surgery.node(op, surgery.name(f"{stem}_{op.lower()}"), list(inputs), value.name, after)
    site.node.attribute.extend(helper.make_attribute(name, entry) for name, entry in attributes.items())
    site.outputs.append(value)
    value.site = site
    after.scope.values[value.name] = value
    return value


def append(
    surgery: Surgery, y: Value, stem: str, op: tuple[str, str], more: Sequence[Value], after: Site
) -> Site:
    """A new node, behind `after`, gives `y` under its name; it reads what gave `y` before, and `more`.

    stem: of the new name of what gave `y`. op: operator and name of the node.
    """
    maker, scope = y.site, y.scope
    assert maker is not None
    inner = Value(surgery.name(stem), scope, maker, y.slot)
    inner.shape, inner.dtype = y.shape, y.dtype
    scope.values[inner.name] = maker.outputs[y.slot] = inner
    maker.node.output[y.slot] = inner.name
    site = surgery.node(*op, [inner, *more], y.name, after)
    site.outputs.append(y)
    y.site, y.slot = site, 0
    return site


def take_over(
    surgery: Surgery,
    last: Site,
    slot: int,
    op: tuple[str, str],
    inputs: Sequence[Value],
    name: str,
    **attributes: Any,
) -> Site:
    """A new node right behind `last` that gives one of its outputs instead. op: domain and operator.

    Kill `last` once all its outputs are taken. What it alone read is left without readers then:
    `Surgery.finish` removes the nodes that computed it.
    """
    y = last.outputs[slot]
    assert y is not None
    domain, op_type = op
    site = surgery.node(op_type, name or f"{y.name}_bnfold", list(inputs), y.name, last)
    site.node.domain = domain
    site.op = f"{domain}.{op_type}" if domain else op_type
    site.node.attribute.extend(helper.make_attribute(key, entry) for key, entry in attributes.items())
    site.outputs.append(y)
    y.site, y.slot, last.outputs[slot] = site, 0, None
    return site
