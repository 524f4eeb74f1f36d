"""What is proven of each channel: the interval in which its values lie, whatever the model is fed.

Bounds flow forward through the graph, by the rule of a node's role or else its operator (`Operator.bounds`).
No statistics are used: a running variance of zero says what a channel did in training, and not what it can
do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import TypeAlias

import numpy as np

from bnfold.fold.graph import Constant, Graph, Node, Refused, Tensor
from bnfold.onnx_graph.ops.facts import LARGEST
from bnfold.onnx_graph.ops.interval import Bounds, collapsed, unknown
from bnfold.onnx_graph.ops.table import record_of
from bnfold.onnx_graph.site import FLOATS, Site
from bnfold.passes.channels.bounds_roles import BY_ROLE
from bnfold.passes.channels.linear_forms import Forms

__all__ = ["Facts", "prove"]

Facts: TypeAlias = "dict[Tensor, Bounds]"

# what a rule may stumble over in a node whose attributes or shapes do not match
_DAMAGE = (IndexError, KeyError, TypeError, ValueError, ArithmeticError, Refused)


def prove(graph: Graph, given: Mapping[str, Bounds] | None = None) -> Facts:
    """The bounds of all floating point tensors.

    Args:
        graph: nodes in the order in which they run.
        given: bounds of graph inputs that hold by agreement, by name.
    """
    facts: Facts = {}
    forms = Forms(facts)
    for node in graph.nodes:
        inputs = [_of(tensor, facts, given or {}) for tensor in node.inputs]
        found = _asked(node, inputs, forms)
        for tensor, bounds in zip(node.outputs, found, strict=True):
            facts[tensor] = _kept(tensor, bounds)
    return facts


def _of(tensor: Tensor | None, facts: Facts, given: Mapping[str, Bounds]) -> Bounds:
    if tensor is None:
        return unknown(0)
    if tensor.constant is not None:
        return _stored(tensor.constant)
    found = facts.get(tensor)
    if found is None and tensor.fixed == "graph input":
        found = given.get(tensor.name)
    return unknown(tensor.rank) if found is None else found


def _stored(constant: Constant) -> Bounds:
    rank = len(constant.shape)
    if constant.dtype not in FLOATS or math.prod(constant.shape) > LARGEST:
        return unknown(rank)
    value = constant.load().astype(np.float64)
    if not np.isfinite(value).all():
        return unknown(rank)
    return Bounds(value, value)


def _asked(node: Node, inputs: list[Bounds], forms: Forms) -> list[Bounds]:
    site: Site = node.source
    nothing = [unknown(tensor.rank) for tensor in node.outputs]
    by_role = BY_ROLE.get(type(node.role))
    rule = partial(by_role, node.role) if by_role else record_of(node.op).bounds
    if rule is None or site.refers or site.scope.in_function:
        return nothing
    try:
        found = rule(node, inputs)
        if isinstance(found, list):
            return found
        return [forms.tighten(node, found), *nothing[1:]]
    except _DAMAGE:
        return nothing


def _kept(tensor: Tensor, bounds: Bounds) -> Bounds:
    """Of the tensor's rank and sizes, and not larger than is worth it."""
    shape = tensor.shape
    if shape is None or tensor.dtype not in FLOATS or any(a.ndim != len(shape) for a in bounds):
        return unknown(tensor.rank)
    for array in bounds:
        if any(n not in (1, size) for n, size in zip(array.shape, shape, strict=True)):
            return unknown(tensor.rank)
    if max(array.size for array in bounds) > LARGEST:
        bounds = bounds.flat(range(tensor.rank))
    return collapsed(bounds, tensor.dtype)
