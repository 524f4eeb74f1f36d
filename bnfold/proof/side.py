"""A region of one model, computed in float64 from what it reads, and what is to be known of its runs: which
pieces were met (pieces.py), what operators that jump have read (steps.py), how long it takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bnfold.proof import steps
from bnfold.proof.claims import Undecided
from bnfold.proof.layers import CONVOLUTIONS, PRODUCTS
from bnfold.proof.operator import Array, Operator, is_float, wide
from bnfold.proof.pieces import Met, along, bounds_of, is_shut
from bnfold.proof.scope import Node, Scope

__all__ = ["Side"]

# Of their inputs only the first one is data: others tell sizes, and no rounding.
SIZED = frozenset({"Resize", "Upsample"})


class Side:
    """A region of one model, with what it reads and gives.

    loose: an operator that could be computed in float32 only, or "". met: of its pieces, by node. strict:
    whether at every place along every axis. steps: what operators that jump have read in the last run.
    """

    def __init__(self, scope: Scope, nodes: Sequence[Node], out: str) -> None:
        self.scope, self.nodes, self.out = scope, nodes, out
        self.loose = ""
        self.met = {node: Met(node) for node in nodes}
        self.steps: list[steps.Step] = []
        self.finite: Array | None = None
        self.used = {out, *(name for node in nodes for name in node.inputs)}
        self.work = self.spent = 0.0  # multiplications of one run, and of all
        self.strict = True

    def constants(self) -> dict[str, Array]:
        """The floating constants that the region's nodes read, and its output if that is one."""
        found: dict[str, Array] = {}
        read = (
            name for node in self.nodes for name in node.inputs[: 1 if node.op in SIZED else None] if name
        )
        for name in (*read, self.out):
            value = self.scope.constant(name)
            if value is not None and is_float(value):
                found[name] = value
        return found

    def run(
        self,
        feed: Mapping[str, Array],
        moved: Mapping[str, Array] | None = None,
        operators: Mapping[Node, Operator] | None = None,
    ) -> Array:
        """The output, from the leaves. moved: other values for constants; operators: others for nodes.

        Raises:
            Undecided: it cannot be computed.
        """
        made, work, jumps = dict(feed), 0.0, list[steps.Step]()
        looked: list[tuple[Node, list[Array | None], list[Array]]] = []

        def value(name: str) -> Array | None:
            if name in made:
                return made[name]
            if moved is not None and name in moved:
                return moved[name]
            stored = self.scope.constant(name) if name else None
            if name and stored is None:
                raise Undecided(f"{name} is not known here")
            return None if stored is None else wide(stored)

        for node in self.nodes:
            given = [value(name) for name in node.inputs]
            operator = node.operator if operators is None else operators.get(node, node.operator)
            outputs, loose = operator.run_wide(given)
            if loose and not self.loose:
                self.loose = f"{'the custom operator ' if node.operator.custom else ''}{node.op}"
            if moved is None:
                looked.append((node, given, outputs))
                used = [y for n, y in zip(node.outputs, outputs, strict=False) if n in self.used]
                jump = steps.step(node, given, used)
                jumps += [] if jump is None else [jump]
                work += _multiplications(node, given, outputs)
            for name, output in zip(node.outputs, outputs, strict=False):
                if name:
                    made.setdefault(name, output)
        self._met(looked)
        result = value(self.out)
        assert result is not None
        self.work = max(self.work, work)
        self.spent += self.work
        self.steps = self.steps if moved is not None else jumps
        return result

    def _met(self, looked: Sequence[tuple[Node, Sequence[Array | None], Sequence[Array]]]) -> None:
        """The pieces that a run has met, from the last node to the first: before one that lets nearly nothing
        through, none shows.
        """
        shows = True
        for node, given, outputs in reversed(looked):
            fixed = [not name or self.scope.constant(name) is not None for name in node.inputs]
            self.met[node].look(fixed, given, outputs, shows)
            shows = shows and not is_shut(node, given, outputs)

    def missed(self) -> tuple[Node, str] | None:
        """A piece that no run has met, in words."""
        if self.nodes and self.strict and self.finite is not None and not self.finite.all():
            return self.nodes[-1], "at some place nothing finite comes out"
        found = ((node, met.missed(self.strict)) for node, met in self.met.items())
        return next((one for one in found if one[1]), None)

    def gave(self, output: Array) -> None:
        """Where one that counts is finite: infinite numbers are equal whatever made them."""
        finite = np.isfinite(output)
        found = np.ones(1, bool) if output.size and finite.all() else along(finite, np.any)
        self.finite = found if self.finite is None else self.finite | found

    def pieces(self, leaves: Sequence[str]) -> bool:
        """Whether there is a bound behind another node: on it the inputs have no direct hold."""
        return any(
            bounds_of(node, [self.scope.constant(name) if name else None for name in node.inputs])
            and node.inputs[0] not in leaves
            for node in self.nodes
        )


def _multiplications(node: Node, given: Sequence[Array | None], outputs: Sequence[Array]) -> float:
    """Those of a layer with weights; of others one for each number that comes out."""
    size = float(sum(np.size(output) for output in outputs if not isinstance(output, list)))
    if node.op in CONVOLUTIONS and given[1] is not None:
        source = given[0] if node.op == "ConvTranspose" else None
        places = size if source is None else float(source.size)
        return float(places * given[1].size / max(given[1].shape[0], 1))
    return float(size * (given[0].shape[-1] if node.op in PRODUCTS and given[0] is not None else 1))
