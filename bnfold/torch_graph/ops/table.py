"""The table of ATen operators: what role each plays for the solver. To add an operator is to add a row.

A row reads one call and returns a role of fold/roles.py, or raises `Refused` with a reason that follows the
call's name in the ledger. The rows lie in layers, products, data and shaping. No row: it is closed.
"""

from __future__ import annotations

from collections.abc import Callable

from bnfold.fold.graph import Refused, Role
from bnfold.fold.roles import Closed
from bnfold.torch_graph.call import Call
from bnfold.torch_graph.ops.data import DATA
from bnfold.torch_graph.ops.layers import LAYERS
from bnfold.torch_graph.ops.products import PRODUCTS
from bnfold.torch_graph.ops.shaping import SHAPING

__all__ = ["ROLES", "role_of"]

ROLES: dict[str, Callable[[Call], Role]] = {**LAYERS, **PRODUCTS, **DATA, **SHAPING}

_CURVES = frozenset(
    (
        *("sigmoid", "silu", "gelu", "tanh", "elu", "celu", "selu", "mish", "softplus", "softsign"),
        *("hardswish", "hardsigmoid", "hardshrink", "log_sigmoid", "erf", "exp", "log", "sqrt", "rsqrt"),
        *("reciprocal", "sin", "cos"),
    )
)
_OTHER = ("Scalar", "dtype", "out")  # overloads that take no tensor, read bits anew, or write elsewhere
_TAKEN = ("masked_fill", "rsub")  # operators of which the overload for a number is the usual one
_DAMAGE = (TypeError, ValueError, IndexError, AttributeError)  # of an argument that a row does not expect


def role_of(call: Call) -> Role:
    """The role of a call; `Closed` with a reason for one without a row, or that its row refuses."""
    namespace, _, overload = str(call.node.target).split(".")
    row = ROLES.get(call.op) if namespace == "aten" else None
    if row is None or (overload in _OTHER and call.op not in _TAKEN):
        return Closed(f"{call.op} is not linear" if call.op in _CURVES else f"there is no rule for {call.op}")
    try:
        return row(call)
    except Refused as refused:
        return Closed(str(refused), listed="batch_norm" in call.op)
    except _DAMAGE as error:
        return Closed(f"cannot be understood: {error}", listed="batch_norm" in call.op)
