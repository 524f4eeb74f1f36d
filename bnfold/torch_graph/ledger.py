"""What became of the values of an exported program: a certificate in the making."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from bnfold.fold import ledger as fold
from bnfold.fold.claims import Claims
from bnfold.fold.edits import Edit
from bnfold.fold.graph import Graph, Tensor

__all__ = ["Ledger"]


class Ledger(fold.Ledger):
    """Values by their names in the graph.

    moved: what new calls stand for since the last round: see `write.apply`. names: all values of the program
    that is there by now. Both are set by who writes it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.moved: dict[str, str] = {}
        self.names: Collection[str] = ()

    def watch(self, graph: Graph, claims: Claims, edits: Sequence[Edit] = ()) -> Callable[[], None]:
        """See `fold.ledger.Ledger`."""
        self.moved = {}
        return super().watch(graph, claims, edits)

    def place_of(self, tensor: Tensor) -> _Place | None:
        """See `fold.ledger.Ledger`."""
        return None if tensor.producer is None or tensor.constant is not None else _Place(self, tensor.name)


@dataclass
class _Place:
    ledger: Ledger
    before: str
    scope: str = ""

    @property
    def name(self) -> str:
        return self.ledger.moved.get(self.before, self.before)

    @property
    def alive(self) -> bool:
        return self.name in self.ledger.names
