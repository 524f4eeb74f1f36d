"""A fold of a program with all that its proof is given, and copies of programs to be made wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

import bnfold
from bnfold.api import fold_program as api
from bnfold.certificate import Certificate
from bnfold.fold.graph import Graph
from bnfold.proof.result import Proof
from bnfold.torch_graph.tracing import without_warnings
from bnfold.torch_graph.write import apply
from bnfold.torch_proof.prove import prove

__all__ = ["Folded", "call", "folded", "put", "value"]


class Folded(NamedTuple):
    """What the check of a fold is given, and what it found."""

    before: ExportedProgram
    after: ExportedProgram
    certificate: Certificate
    names: dict[str, str]
    proof: Proof

    def changed(self, change: Callable[[ExportedProgram], Any], certificate: bool = True) -> Proof:
        """The proof of a copy of the folded program in which something was changed."""
        other = apply(self.after, Graph(), [], "duplicate")
        change(other)
        other.graph.lint()
        return prove(self.before, other, self.certificate if certificate else None, self.names)


def folded(module: nn.Module, x: Tensor, **options: Any) -> Folded:
    """By `bnfold.fold_program`. options: of the export."""
    given: list[Any] = []

    def noting(*arguments: Any) -> Proof:
        given.extend(arguments)
        return prove(*arguments)

    with mock.patch.object(api, "prove", noting), without_warnings():
        _, report = bnfold.fold_program(torch.export.export(module, (x,), **options))
    assert report.verification is not None
    assert isinstance(report.verification.proof, Proof)
    return Folded(*given, report.verification.proof)


def call(program: ExportedProgram, name: str) -> fx.Node:
    return next(node for node in program.graph.nodes if node.name == name)


def value(program: ExportedProgram, target: str) -> Tensor:
    found = program.state_dict[target]
    assert isinstance(found, Tensor)
    return found


def put(program: ExportedProgram, target: str, new: Tensor) -> None:
    program.state_dict[target] = nn.Parameter(new, requires_grad=False)
