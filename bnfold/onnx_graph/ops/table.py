"""The table of operators: the records of all families, by `Site.op`; what has none is closed, and unknown."""

from __future__ import annotations

from bnfold.fold.graph import Refused, Role
from bnfold.fold.roles import Closed
from bnfold.onnx_graph.ops.activations import ACTIVATIONS
from bnfold.onnx_graph.ops.conversion import CONVERSION
from bnfold.onnx_graph.ops.elementwise import ELEMENTWISE
from bnfold.onnx_graph.ops.indexing import INDEXING
from bnfold.onnx_graph.ops.linear import LINEAR
from bnfold.onnx_graph.ops.norms import NORMS
from bnfold.onnx_graph.ops.operator import Operator
from bnfold.onnx_graph.ops.shaping import SHAPING
from bnfold.onnx_graph.ops.sources import SOURCES
from bnfold.onnx_graph.ops.windowed import WINDOWED
from bnfold.onnx_graph.site import FLOATS, INLINE, STATE, Site

__all__ = ["OPERATORS", "UNKNOWN", "record_of", "role_of"]

OPERATORS: dict[str, Operator] = {
    **LINEAR,
    **ELEMENTWISE,
    **ACTIVATIONS,
    **WINDOWED,
    **NORMS,
    **SHAPING,
    **INDEXING,
    **CONVERSION,
    **SOURCES,
}
UNKNOWN = Operator()


def record_of(op: str) -> Operator:
    """What is known of an operator: nothing, if it has no record."""
    return OPERATORS.get(op, UNKNOWN)


def role_of(site: Site) -> Role:
    """The role of a node.

    Args:
        site: the node, and what is known about its inputs and outputs.

    Returns:
        A role; `Closed` with a reason for an operator without a role, one that refuses, or other than float
        data.

    Raises:
        ModelError: the node cannot run: weights and input do not match, or a running variance is negative.
    """
    if site.refers:
        return Closed("takes an attribute from the call of its function", cure=INLINE)
    record = OPERATORS.get(site.op, UNKNOWN)
    rule = record.role
    if rule is None:
        return Closed(record.closed or f"{site.node.op_type} is not linear")
    dtype = site.dtype(record.data)
    if dtype not in FLOATS:
        return Closed(f"works on {dtype or 'an unknown type'}", cure="" if dtype else STATE)
    try:
        role = rule(site)
    except Refused as refused:
        return Closed(str(refused), cure=refused.cure)
    known = site.out_shape(0) is not None
    return role if known else Closed("the rank of its output is not known", cure=STATE)
