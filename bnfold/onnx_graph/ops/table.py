"""The table of operators: what role each plays for the solver. To add an operator is to add a row.

A row is a function that reads one node (a `Site`) and returns a role of fold/graph.py. What it cannot
answer it refuses by `facts.Refused`, whose text follows the node's name in the ledger. The rows lie in
linear_ops.py, elementwise_ops.py, window_ops.py, shape_ops.py and norm_ops.py. No row: it is closed.
"""

from __future__ import annotations

from collections.abc import Callable

from bnfold.fold.graph import Role
from bnfold.fold.roles import Closed
from bnfold.onnx_graph.model.evaluate import UNSEEN
from bnfold.onnx_graph.model.site import FLOATS, Site
from bnfold.onnx_graph.ops.elementwise import ELEMENTWISE
from bnfold.onnx_graph.ops.facts import Refused
from bnfold.onnx_graph.ops.linear import LINEAR
from bnfold.onnx_graph.ops.norms import NORMS
from bnfold.onnx_graph.ops.shaping import SHAPES
from bnfold.onnx_graph.ops.windowed import WINDOWS

__all__ = ["BLIND", "ROLES", "Row", "role_of"]

Row = Callable[[Site], Role]

# the slot that holds the data, where it is not the first
_DATA = {"Where": 1}

# why operators without a role are closed, where "is not linear" would not be the reason
_CLOSED = {
    **dict.fromkeys(("If", "Loop", "Scan"), "is control flow"),
    **dict.fromkeys(("QuantizeLinear", "DynamicQuantizeLinear"), "rounds to integers"),
    "DequantizeLinear": "reads integers",
    "CumSum": "has no rule: it adds up a growing number of entries",
    "LRN": "divides by its neighbouring channels",
    "Reciprocal": "divides by its input",
    **dict.fromkeys(
        ("ScatterElements", "ScatterND", "GatherElements", "GatherND"),
        "has no rule: indexes entries one by one",
    ),
}

# (operator, slot) where only shape or type is seen: a change there changes nothing, and is not to be told.
BLIND = frozenset({*UNSEEN, ("EyeLike", 0), ("RandomNormalLike", 0), ("RandomUniformLike", 0)})


ROLES: dict[str, Row] = {**LINEAR, **ELEMENTWISE, **WINDOWS, **SHAPES, **NORMS}  # by `Site.op`


def role_of(site: Site) -> Role:
    """The role of a node.

    Args:
        site: the node, and what is known about its inputs and outputs.

    Returns:
        A role; `Closed` with a reason for an operator without a row, one that the row refuses, or other than
        float data.

    Raises:
        ModelError: the node cannot run: weights and input do not match, or a running variance is negative.
    """
    if site.refers:
        return Closed("takes an attribute from the call of its function")
    op = site.op
    row = ROLES.get(op)
    if row is None:
        return Closed(_CLOSED.get(op) or f"{site.node.op_type} is not linear")
    dtype = site.dtype(_DATA.get(op, 0))
    if dtype not in FLOATS:
        return Closed(f"works on {dtype or 'an unknown type'}")
    try:
        role = row(site)
    except Refused as refused:
        return Closed(str(refused))
    return role if site.out_shape(0) is not None else Closed("the rank of its output is not known")
