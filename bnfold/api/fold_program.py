"""`bnfold.fold_program`: the pipeline for exported torch programs; the writer makes a new program."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any

import torch
from torch.export import ExportedProgram

from bnfold.api.pipeline import FrontEnd, fold
from bnfold.errors import UsageError, explained
from bnfold.fold.merge.view import View
from bnfold.options import Check, Fold, refuse_others
from bnfold.report.fold import Report
from bnfold.report.verification import Verification
from bnfold.torch_graph.read import read
from bnfold.torch_graph.tracing import without_warnings
from bnfold.torch_graph.write import apply
from bnfold.verify.modules import verify_modules

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
    quantize_for: str | None = None,
    **others: Any,
) -> tuple[ExportedProgram, Report]:
    """Fold every batch norm that can vanish from an exported torch program.

    Args:
        program: what `torch.export.export` gave for a module in eval mode; it is not changed.
        verify: run both programs on `inputs` (None: the example inputs of the export) and compare.
        shared: what to do with a parameter whose users need different values: "duplicate" it, "skip" the
            fold, or raise an "error".
        skip: names of batch norms to leave alone: the names of their modules.
        rtol: tolerance of the check, against the largest absolute value of each output; None: by type.
        atol: absolute tolerance, added to it.
        inputs: positional arguments of the program.
        merge_branches: as for `fold_onnx`. (`fold_module`, which keeps classes and names, merges none.)
        quantize_for: as for `fold_onnx`.
        others: options of `fold_onnx` that only ONNX models have, which are refused by name.

    Returns:
        The folded program, functional (in-place operators are gone) unless nothing folded, and the report.

    Raises:
        UsageError: `program` is no exported program, or a name or an option is unknown.
        VerifyError: the folded program does not compute the same; the message names the first fold or merge
            that broke it.
    """
    why = "only ONNX models have that; see bnfold.export and bnfold.fold_onnx"
    refuse_others("fold_program", others, why)
    options = Fold(shared, skip, merge_branches=merge_branches, quantize_for=quantize_for)
    check = Check(verify, inputs, rtol=rtol, atol=atol)
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
    front = FrontEnd(
        read=read,
        write=partial(apply, shared=shared),
        check=partial(_compare, arguments, check),
        view=partial(View, symmetric=True),
    )
    done = fold(front, functional, options, "program", verify=check.verify)
    return program if done.model is functional else done.model, done.report


def _compare(
    arguments: tuple[Any, Any], check: Check, before: ExportedProgram, after: ExportedProgram
) -> Verification:
    return verify_modules(before.module(), after.module(), *arguments, check)
