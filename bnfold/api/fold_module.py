"""Export, read, solve, write, verify: the same steps as in api.py, for torch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.nn.parameter import is_lazy

from bnfold.api.fold_onnx import (
    Limits,
    check_choice,
    check_names,
    check_options,
)
from bnfold.errors import UsageError, VerifyError, first_line
from bnfold.fold.graph import Affine, Graph, SetValue
from bnfold.fold.merge.plan import look, merge_all
from bnfold.fold.merge.view import AnyEdit, View
from bnfold.fold.solve import Plan, solve
from bnfold.report.fold import Report
from bnfold.report.verification import Verification
from bnfold.torch_graph.module import apply as modules
from bnfold.torch_graph.module.parametrizations import parametrized, remove
from bnfold.torch_graph.module.what_is_left import (
    Replacement,
    Replacements,
    calls_of,
    mean_of,
)
from bnfold.torch_graph.read import read
from bnfold.torch_graph.tracing import without_warnings
from bnfold.torch_graph.write import apply
from bnfold.verify.models import first_bad
from bnfold.verify.modules import outputs, verify_modules

__all__ = ["fold_module", "fold_program"]


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

    Returns:
        The folded program, functional (in-place operators are gone) unless nothing folded, and the ledger.

    Raises:
        UsageError: `program` is no exported program, or a name or an option is unknown.
        VerifyError: the folded program does not compute the same; the message names the first fold or merge
            that broke it.
    """
    if not isinstance(program, ExportedProgram):
        raise UsageError(
            f"fold_program takes what torch.export.export gives, not {type(program).__name__}; "
            "export the module first"
        )
    check_options(shared, skip)
    try:
        with without_warnings():
            functional = program.run_decompositions({})  # nothing is decomposed, but in-place operators go
    except Exception as error:  # of any kind: this is all of torch's tracing
        raise UsageError(f"torch cannot make the program functional: {first_line(error)}") from error

    def fold(limits: Limits) -> tuple[ExportedProgram, Plan, Report]:
        graph, only = read(functional, shared), limits.folds
        check_names(graph.nodes, skip)
        plan = solve(graph, skip=skip, allow=None if only is None else (lambda node: node.name in only))
        report = Report(plan.entries)
        merging = limits.merges != 0 and look(graph, View(set(plan.order), skip, symmetric=True), report)
        result = apply(functional, graph, plan.edits, shared)
        return (_merged(result, report, skip, shared, limits.merges) if merging else result), plan, report

    folded, plan, report = fold(Limits(merges=None if merge_branches else 0))
    if not (plan.order or report.merged):
        report.notes.append("nothing to fold: the program is unchanged")
        return program, report
    if verify:
        args, kwargs = (inputs, {}) if inputs is not None else (program.example_inputs or (None, {}))

        def check(after: ExportedProgram) -> Verification:
            return verify_modules(functional.module(), after.module(), args, kwargs, rtol, atol)

        found = check(folded)
        _verified(report, plan, found, lambda folds, merges: check(fold(Limits(folds, merges))[0]))
    return folded, report


def _merged(
    program: ExportedProgram, report: Report, skip: Collection[str], shared: str, limit: int | None
) -> ExportedProgram:
    """The program with its branches merged, as the report tells."""
    careful = "duplicate" if shared == "duplicate" else "skip"

    def write(graph: Graph, edits: Sequence[AnyEdit]) -> None:
        nonlocal program
        program = apply(program, graph, edits, careful)

    merge_all(report, lambda: read(program, careful), write, lambda: View((), skip, symmetric=True), limit)
    return program


@torch.inference_mode(False)
def fold_module(
    module: nn.Module,
    example_inputs: Any,
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    inplace: bool = False,
    shared: str = "duplicate",
    parametrizations: str = "keep",
    verify: bool = True,
    skip: Collection[str] = (),
    rtol: float | None = None,
    atol: float | None = None,
) -> tuple[nn.Module, Report]:
    """Fold every batch norm that can vanish from a torch module, whose classes and names stay.

    The plan is made on the graph that `torch.export` sees, and carried out on the module: weights and biases
    are rewritten, and a batch norm module that vanishes becomes `nn.Identity`, or `nn.Sequential` of the
    submodules that it calls after its batch norm (an activation, say). One that does more than that, carries
    hooks, or is a call of `torch.nn.functional.batch_norm`, is made the identity map instead; the ledger says
    so. A module holds one weight for all of its calls, so that what is called several times is folded less
    often here than by `fold_program`.

    Branches are not merged, and layers in a row neither: `fold_program` does that.

    What holds is what the trace saw: other branches of the module's code, and other sizes than those of the
    example where `dynamic_shapes` does not free them, may share weights with what was folded.

    Args:
        module: in eval mode, or wholly or partly in training mode, as it shall be used: a batch norm in
            training mode is kept.
        example_inputs: a tensor, or a tuple of positional arguments.
        kwargs: keyword arguments.
        dynamic_shapes: as for `torch.export.export`.
        inplace: change `module` itself, and not a copy of it; if the check fails it is as it was.
        shared: what to do with parameters that several modules share and that need different values: give
            each its own ("duplicate"), "skip" the fold, or raise an "error".
        parametrizations: what to do with a weight that is computed from other parameters (weight norm,
            spectral norm) where a fold would change it: "keep" it, and with it the batch norm, or "remove"
            the parametrization, which leaves a plain parameter.
        verify: run both modules on the example inputs and compare.
        skip: names of batch norms to leave alone.
        rtol: tolerance of the check, against the largest absolute value of each output; None: by type.
        atol: absolute tolerance, added to it.

    Returns:
        The folded module and the ledger.

    Raises:
        UsageError: torch cannot export the module (the message says what torch said), or a name is unknown.
        VerifyError: the folded module does not compute the same; the message names the first fold that broke
            it.
    """
    check_options(shared, skip)
    check_choice("parametrizations", parametrizations, ("keep", "remove"))
    args = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    options = dict(kwargs or {})
    _check_module(module)
    plain, computed = module, parametrized(module) if parametrizations == "remove" else []
    if computed:
        plain = _copied(module)
        remove(plain, computed)
    raw, program = _exported(plain, args, options, dynamic_shapes)
    probe = _copied(plain)
    made = calls_of(probe, lambda: outputs(probe, args, options))
    replacements = Replacements(plain, raw, program, made)
    removed: dict[str, None] = {}
    untied: dict[str, str] = {}

    def fold(target: nn.Module, only: Collection[str] | None) -> tuple[Plan, set[str]]:
        graph = read(program)
        check_names(graph.nodes, skip)
        tied = modules.restrict(plain, program, graph, made, shared)
        plan = _possible(graph, skip, only)
        changed = {edit.old.store for edit in plan.edits if isinstance(edit, SetValue) and edit.old}
        here = [name for name in computed if name in changed]
        removed.update(dict.fromkeys(here))
        remove(target, here)
        for edit in plan.edits:
            if isinstance(edit, SetValue) and edit.old in tied:
                untied[edit.old.store] = tied[edit.old]
        if untied and shared == "error":
            raise UsageError(
                f"the parameter {', '.join(untied)} is shared with {', '.join(untied.values())}, and they "
                "need different values after the fold; allow that (shared='duplicate'), or keep what needs "
                "it (shared='skip')"
            )
        found: dict[str, Replacement] = {}
        gone = set(plan.order)
        for node in plan.order:  # all calls of one batch norm have the same replacement
            replacement = replacements(node, gone)
            same = found.get(mean_of(node), replacement) == replacement
            found[mean_of(node)] = replacement if same else None
        modules.apply(target, plan.edits, found)
        return plan, {node.name for node in plan.order if found[mean_of(node)] is None}

    folded = _copied(module)
    plan, names = fold(folded, None)
    note = "its call stays in eager mode, as the identity map"
    report = Report([entry._replace(reason=note) if entry.name in names else entry for entry in plan.entries])
    unseen = modules.unseen(plain, program)
    if unseen:
        some = ", ".join(unseen[:4]) + (f" and {len(unseen) - 4} more" if len(unseen) > 4 else "")
        report.notes.append(f"not called on these inputs, and so not looked at: {some}")
    if module.training and report.kept:
        report.notes.append("the module is in training mode: if it is trained, call .eval() first")
    if not plan.order:
        report.notes.append("nothing to fold: the module is unchanged")
        return (module if inplace else folded), report
    if names:
        many = "batch norms stay as calls" if len(names) > 1 else "batch norm stays as a call"
        report.notes.append(f"{len(names)} folded {many} of the identity map")
    report.notes += [f"the parametrization of {name} is removed: it is a plain parameter" for name in removed]
    report.notes += [
        f"{name} is no longer tied to {other}" for name, other in untied.items() if name != other
    ]
    if verify:

        def check(after: nn.Module) -> Verification:
            return verify_modules(_copied(module), _copied(after), args, options, rtol, atol)

        def partly(only: Collection[str], _: int) -> Verification:
            part = _copied(module)
            fold(part, only)
            return check(part)

        _verified(report, plan, check(folded), partly)
    if inplace:
        fold(module, None)
        return module, report
    return folded, report


def _possible(graph: Graph, skip: Collection[str], only: Collection[str] | None) -> Plan:
    """The best plan that a module can follow: folds are taken back until all that is left can be done."""
    allow = None if only is None else (lambda node: node.name in only)
    while True:
        plan = solve(graph, skip=skip, allow=allow)
        odd = {node.name for node in modules.unable(plan.edits)}
        blamed = {entry.name for entry in plan.entries if odd & set(entry.into)}
        numbers = [node for node in plan.order if node.name in blamed]
        stay = dict.fromkeys(numbers, "would change a number in the module's code")
        stay |= dict.fromkeys(modules.half_gone(graph, plan.order), "another call of its module stays")
        if not stay:
            return plan
        for node, why in stay.items():
            assert isinstance(node.role, Affine)
            node.role.stay = why


def _copied(module: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(module)
    except Exception as error:  # of any kind: modules may hold anything
        raise UsageError(
            f"{type(module).__name__} cannot be copied: {first_line(error)}\n"
            "The older torch.nn.utils.weight_norm leaves such a tensor behind: call the module once under "
            "torch.no_grad(), or use torch.nn.utils.parametrizations"
        ) from error


def _check_module(module: Any) -> None:
    if not isinstance(module, nn.Module):
        raise UsageError(f"fold_module takes a torch.nn.Module, not {type(module).__name__}")
    values = [*module.parameters(), *module.buffers()]
    if any(is_lazy(value) for value in values):
        raise UsageError("the module has lazy parameters that hold nothing yet: run it once, then fold it")
    if any(value.is_meta for value in values):
        raise UsageError(
            "the module has parameters on the meta device, without values: load its weights first"
        )


def _exported(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any
) -> tuple[ExportedProgram, ExportedProgram]:
    """The module's program, and the same without in-place operators."""
    try:
        with without_warnings():
            raw: ExportedProgram = torch.export.export(module, args, kwargs, dynamic_shapes=dynamic_shapes)
            return raw, raw.run_decompositions({})
    except Exception as error:  # of any kind: this is all of torch's tracing on the user's code
        raise UsageError(
            f"torch.export cannot see the whole of {type(module).__name__}: {first_line(error)}\n"
            "Fold the part of it that can be exported, or rewrite what depends on data"
        ) from error


def _verified(
    report: Report, plan: Plan, found: Verification, partly: Callable[[Collection[str], int], Verification]
) -> None:
    """Note what the check found; raise `VerifyError` with the first fold or merge to blame if it failed.

    partly: the check with these folds alone, and with so many merges.
    """
    report.verification = found
    if found.status == "not run":
        report.notes.append(f"not verified: {found.reason}")
    if found.status != "failed":
        return
    order, merges = [node.name for node in plan.order], len(report.merged)

    def passes(folds: int, merges: int = 0) -> bool:
        return partly(frozenset(order[:folds]), merges).status != "failed"

    if merges and passes(len(order)):
        count = first_bad(merges, lambda merges: passes(len(order), merges))
        bad = f"no fold broke it, but the merging of branches into {report.merged[count - 1].name} did"
    else:
        bad = f"the first fold that broke it is {order[first_bad(len(order), passes) - 1]}"
    raise VerifyError(f"what was folded does not compute the same: {bad}\n{found}")
