"""What became of the tensors of a file: a certificate in the making."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from bnfold.fold import ledger as fold
from bnfold.fold.graph import Tensor
from bnfold.onnx_graph.site import Scope, Value

__all__ = ["Ledger"]


class Ledger(fold.Ledger):
    """Tensors by the scopes that they are in. Functions are not told apart by their calls: nothing is noted
    of what is in them.
    """

    def place_of(self, tensor: Tensor) -> _Place | None:
        """See `fold.ledger.Ledger`."""
        if tensor.producer is None or tensor.constant is not None:
            return None
        value: Value | None = tensor.producer.source.outputs[-1 - tensor.slot]
        return None if value is None or value.scope.in_function else _Place(value)


@dataclass
class _Place:
    value: Value

    @cached_property
    def scope(self) -> str:
        return path(self.value.scope)

    @property
    def name(self) -> str:
        return self.value.name

    @property
    def alive(self) -> bool:
        return self.value.scope.values.get(self.value.name) is self.value


def path(scope: Scope) -> str:
    """What a certificate calls a scope; see bnfold/certificate.py."""
    if scope.owner is None or scope.parent is None:
        return ""
    owner = scope.owner
    stem = next((name for name in owner.node.output if name), "")
    return f"{path(scope.parent)}{stem}:{(owner.bodies or []).index(scope)}/"
