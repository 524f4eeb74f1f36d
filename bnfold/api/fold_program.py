"""`bnfold.fold_program`: the pipeline for exported torch programs; the writer makes a new program."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

import torch
from torch.export import ExportedProgram

from bnfold.api.pipeline import FrontEnd, fold
from bnfold.errors import ModelError, UsageError, explained
from bnfold.fold.edits import Edit
from bnfold.fold.graph import Graph
from bnfold.fold.merge.view import View
from bnfold.options import Check, Fold, refuse_others
from bnfold.report.fold import Report
from bnfold.report.verification import Verification
from bnfold.torch_graph.ledger import Ledger
from bnfold.torch_graph.outline import outline
from bnfold.torch_graph.read import read
from bnfold.torch_graph.tracing import without_warnings
from bnfold.torch_graph.write import apply
from bnfold.torch_proof.prove import prove
from bnfold.verify.modules import outputs, verify_modules

__all__ = ["fold_program"]


@torch.inference_mode(False)
def fold_program(
    program: ExportedProgram,
    *,
    verify: bool = True,
    shared: str = "duplicate",
    skip: Collection[str] = (),
    rtol: float | None = None,
    atol: float | None = None,
    inputs: tuple[Any, ...] | None = None,
    merge_branches: bool = True,
    check: str | None = None,
    quantize_for: str | None = None,
    **others: Any,
) -> tuple[ExportedProgram, Report]:
    """Fold every batch norm that can vanish from an exported torch program.

    Args:
        program: what `torch.export.export` gave for a module in eval mode; it is not changed.
        verify: compare both programs.
        shared: what to do with a parameter whose users need different values: "duplicate" it, "skip" the
            fold, or raise an "error".
        skip: names of batch norms to leave alone: the names of their modules.
        rtol: tolerance of the check, against the largest absolute value of each output; None: by type.
        atol: absolute tolerance, added to it.
        inputs: positional arguments of the program, for runs; None: the example inputs of the export.
        merge_branches: as for `fold_onnx`. (`fold_module`, which keeps classes and names, merges none.)
        check: as for `fold_onnx`: "run" both programs; let a "proof" decide, and runs what it leaves
            undecided; or "both". None: a proof, and both where inputs or tolerances are given.
        quantize_for: as for `fold_onnx`.
        others: options of `fold_onnx` that only ONNX models have, which are refused by name.

    Returns:
        The folded program, functional (in-place operators are gone) unless nothing folded, and the report.

    Raises:
        UsageError: `program` is no exported program, or a name or an option is unknown.
        VerifyError: the folded program does not compute the same; the message names the call that is wrong,
            or the first fold or merge that broke it.
    """
    why = "only ONNX models have that; see bnfold.export and bnfold.fold_onnx"
    refuse_others("fold_program", others, why)
    options = Fold(shared, skip, merge_branches=merge_branches, quantize_for=quantize_for)
    how = Check(verify, inputs, rtol=rtol, atol=atol, check=check)
    if not isinstance(program, ExportedProgram):
        raise UsageError(
            f"fold_program takes what torch.export.export gives, not {type(program).__name__}; "
            "export the module first"
        )
    with explained("torch cannot make the program functional"), without_warnings():
        functional = program.run_decompositions({})  # nothing is decomposed, but in-place operators go
    arguments: tuple[Any, Any] = (inputs, {})
    if inputs is None:
        arguments = program.example_inputs or (None, {})
    work = _Programs(shared, how, arguments)
    front = FrontEnd(
        read=work.read,
        write=work.write,
        check=work.compare,
        view=partial(View, symmetric=True),
        watch=work.ledger.watch if how.verify and how.by != "run" else None,
        drawn=True,
    )
    done = fold(front, functional, options, "program", verify=how.verify)
    names = work.names or {}
    done.report.graphs = outline(functional, names), outline(done.model, names)
    return program if done.model is functional else done.model, done.report


class _Programs:
    """The front end: programs that are read, written and compared, and what became of their values."""

    def __init__(self, shared: str, check: Check, arguments: tuple[Any, Any]) -> None:
        self.shared, self.check, self.arguments = shared, check, arguments
        self.ledger = Ledger()
        self.names: dict[str, str] | None = None  # what calls of the first program are called in reports
        self.finished = False  # what is made after the first check is a part of the work, to look for a fault

    def read(self, program: ExportedProgram, shared: str) -> Graph:
        graph = read(program, shared)
        if self.names is None:
            self.names = {node.source.name: node.name for node in graph.nodes}
        return graph

    def write(self, program: ExportedProgram, graph: Graph, edits: Sequence[Edit]) -> ExportedProgram:
        made = apply(program, graph, edits, self.shared, self.ledger.moved)
        self.ledger.names = {node.name for node in made.graph.nodes}
        return made

    def compare(self, before: ExportedProgram, after: ExportedProgram) -> Verification:
        """By a proof, by runs, or by both. What a proof leaves undecided, runs decide."""
        proof, notes = None, list[str]()
        if self.check.by != "run" and not self.finished:
            try:
                certificate = self.ledger.certificate({})
                with without_warnings():
                    proof = prove(before, after, certificate, self.names)
            except (ModelError, MemoryError) as error:
                notes.append(f"compared, since a proof is not to be had: {error or type(error).__name__}")
            except Exception as error:  # a fault of the proof must not keep runs from judging
                notes.append(f"compared, since the proof has a fault of bnfold, please report it: {error!r}")
        self.finished = True
        if proof is not None and proof.status == "refuted":
            return Verification([], "", "failed", "", 0.0, 0.0, proof=proof)
        if proof is not None and proof.status == "proved" and self.check.by == "proof":
            proof.ran = self._runs(after)
            if proof.ran or self.arguments[0] is None:
                if not proof.ran:
                    notes.append("the folded program was not run: it carries no example inputs")
                return Verification([], "", "passed", "", 0.0, 0.0, notes, proof)
        found = verify_modules(before.module(), after.module(), *self.arguments, self.check)
        found.proof = proof
        found.notes += notes
        return found

    def _runs(self, program: ExportedProgram) -> bool:
        """Right arithmetic may stand in a program that does not run."""
        args, kwargs = self.arguments
        if args is None:
            return False
        try:
            outputs(program.module(), args, kwargs)
        except Exception:  # of any kind; runs of both programs tell more
            return False
        return True
