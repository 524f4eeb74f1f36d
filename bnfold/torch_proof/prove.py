"""Proving that one exported program computes what another does, as proof/decide.py does it for files."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np
import torch
from torch.export import ExportedProgram

from bnfold.certificate import Certificate
from bnfold.proof.claims import Entry
from bnfold.proof.decide import Prover
from bnfold.proof.operator import Array, Undecided
from bnfold.proof.result import Proof
from bnfold.proof.scope import LARGEST, Scope
from bnfold.torch_proof.program import Program, shape_of

__all__ = ["prove"]


def prove(
    original: ExportedProgram,
    folded: ExportedProgram,
    certificate: Certificate | None = None,
    names: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Proof:
    """Prove that `folded` computes what `original` does, but for the rounding of its stored numbers.

    Args:
        original: the program to trust; functional, as `run_decompositions` makes it.
        folded: the program to judge.
        certificate: what became of the original's values, by their names in its graph; all of its claims must
            hold. None: each is claimed to be what the folded program has under its name.
        names: of calls of the original by their names in the graph, where they are to be called otherwise.
        seed: of the numbers that regions are evaluated on.

    Raises:
        ModelError: a program writes into what it reads, or holds programs of its own.
    """
    a, b = Program(original, names or {}), Program(folded, {})
    known = KnownOfProgram(a)
    proof = Prover(a, b, known, certificate, np.random.default_rng(seed)).run()
    proof.sizes = known.sizes
    return proof


class KnownOfProgram:
    """Types and shapes as the export has noted them, in the sizes of its example."""

    def __init__(self, scope: Program) -> None:
        self._scope, self.work = scope, 0.0
        self.sizes: dict[str, tuple[int, ...]] = {}  # of the inputs, where shapes were needed

    def value(self, name: str, path: str = "") -> Array:
        """See `proof.scope.Known`."""
        self.sizes = self._sizes
        kind = self._scope.kinds.get(name)
        if isinstance(kind, torch.Tensor) and kind.is_floating_point():
            shape = shape_of(kind)
            if shape is None:
                raise Undecided(f"the shape of {name} is not known")
            value: Array = np.broadcast_to(np.zeros((), np.float32), shape)
            if value.size > LARGEST:
                raise Undecided(f"{name} has too many numbers to make up: {list(shape)}")
            return value
        if name not in self._integers:
            raise Undecided(f"{name} is made of data, and not of floating numbers")
        return self._integers[name]

    def counterexample(self, other: Scope) -> Entry | None:
        """None: what is undecided is compared anyway, by runs that allow for rounding."""
        return None

    @cached_property
    def _sizes(self) -> dict[str, tuple[int, ...]]:
        kinds = {name: self._scope.kinds.get(name) for name in self._scope.inputs}
        shapes = {name: shape_of(kind) for name, kind in kinds.items() if isinstance(kind, torch.Tensor)}
        return {name: shape for name, shape in shapes.items() if shape is not None}

    @cached_property
    def _integers(self) -> dict[str, Array]:
        """What is made of shapes, in the sizes of the example."""
        found: dict[str, Array] = {}

        def given(name: str) -> Array | None:
            if not name:
                return None
            constant = self._scope.constant(name)
            if constant is not None:
                return constant
            if name in found:
                return found[name]
            kind = self._scope.kinds.get(name)
            shape = shape_of(kind) if isinstance(kind, torch.Tensor) else None
            if shape is None:
                raise Undecided(f"the shape of {name} is not known")
            return np.broadcast_to(np.zeros((), np.float32), shape)

        for node in self._scope.nodes:
            if self._scope.of_shapes.isdisjoint(node.outputs):
                continue
            try:
                made = node.operator.run([given(name) for name in node.inputs])
            except Undecided:
                continue
            found |= {name: value for name, value in zip(node.outputs, made, strict=False) if name}
        return found
