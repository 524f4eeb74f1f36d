"""`bnfold.fold_module`: the pipeline for torch modules: a plan for the program, carried out on the module."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from bnfold.api.pipeline import FrontEnd, run
from bnfold.errors import UsageError
from bnfold.fold.edits import Bypass, Edit, SetValue
from bnfold.fold.graph import Graph, Node
from bnfold.fold.roles import Affine
from bnfold.fold.solve import Plan, solve
from bnfold.options import Check, Fold, choice, refuse_others
from bnfold.report.fold import Entry, Report
from bnfold.report.table import first
from bnfold.report.verification import Verification
from bnfold.torch_graph.module.apply import apply, written
from bnfold.torch_graph.module.checks import check_module, copied, exported
from bnfold.torch_graph.module.limits import Limits, half_gone, unable, unseen
from bnfold.torch_graph.module.parametrizations import parametrized, remove
from bnfold.torch_graph.module.what_is_left import Replacement, Replacements, calls_of, mean_of
from bnfold.torch_graph.module.wholes import Whole, wholes_of
from bnfold.torch_graph.read import read
from bnfold.verify.blame import Part, judge
from bnfold.verify.modules import outputs, verify_modules
from bnfold.wrappers import plain_arguments, plain_module

__all__ = ["fold_module"]


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
    **others: Any,
) -> tuple[nn.Module, Report]:
    """Fold every batch norm that can vanish from a torch module, whose classes and names stay.

    The plan is made on the graph that `torch.export` sees, and carried out on the module: weights and biases
    are rewritten, and a batch norm module that vanishes becomes `nn.Identity`, or `nn.Sequential` of the
    submodules that it calls after its batch norm (an activation, say). One that does more than that, carries
    hooks, or is a call of `torch.nn.functional.batch_norm`, is made the identity map instead; the ledger says
    so. Any other module that as a whole scales and shifts its channels by stored numbers (the frozen batch
    norms of detection libraries, a layer scale) becomes `nn.Identity` as well. A module holds one weight for
    all of its calls: it folds where they all need the same, and stays where they do not (`fold_program` gives
    each call its own).

    Branches are not merged, and layers in a row neither: `fold_program` does that.

    What holds is what the trace saw: other branches of the module's code, and other sizes than those of the
    example where `dynamic_shapes` does not free them, may share weights with what was folded.

    Args:
        module: in eval mode, or wholly or partly in training mode, as it shall be used: a batch norm in
            training mode is kept. Of a wrapper (DataParallel, DistributedDataParallel, torch.compile) what is
            inside it.
        example_inputs: a tensor, or a tuple of positional arguments.
        kwargs: keyword arguments.
        dynamic_shapes: as for `torch.export.export`, or with a name for a size, {0: "batch"}.
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
        others: options of `fold_onnx` that a module cannot honour, which are refused by name.

    Returns:
        The folded module and the report.

    Raises:
        UsageError: torch cannot export the module (the message says what torch said), or a name is unknown.
        VerifyError: the folded module does not compute the same; the message names the first fold that broke
            it.
    """
    why = "a module keeps its classes and names; see bnfold.fold_program, bnfold.export and bnfold.fold_onnx"
    refuse_others("fold_module", others, why)
    options = Fold(shared, skip)
    check = Check(verify, rtol=rtol, atol=atol)
    choice("parametrizations", parametrizations, ("keep", "remove"))
    module = plain_module(module, "fold_module")
    check_module(module)
    args = plain_arguments(module, example_inputs, "fold_module")
    work = _Modules(module, args, dict(kwargs or {}), dynamic_shapes, options, parametrizations == "remove")
    check_with = partial(work.compare, check)
    front = FrontEnd(read=work.read, write=work.write, check=check_with, solve=work.solve, drawn=True)

    done = run(front, copied(module), options)
    folded, report = done.model, done.report
    report.entries = work.told(report.entries)
    report.notes += [*work.notes(report), *done.warnings]
    if not done.order:
        report.notes.append("nothing to fold: the module is unchanged")
        return (module if inplace else folded), report
    report.notes += work.notes_of_folds()
    if check.verify:

        def again(part: Part) -> Verification:
            return front.check(module, run(front, copied(module), options, part=part).model)

        judge(report, front.check(module, folded), done.work(), again)
    if inplace:
        run(front, module, options)
        return module, report
    return folded, report


class _Modules:
    """The front end of one module: a graph of its program, edits on its copies."""

    def __init__(
        self,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        dynamic_shapes: Any,
        options: Fold,
        remove_parametrizations: bool,
    ) -> None:
        self.module, self.args, self.kwargs, self.options = module, args, kwargs, options
        self.plain = module
        self.computed = parametrized(module) if remove_parametrizations else []
        if self.computed:
            self.plain = copied(module)
            remove(self.plain, self.computed)
        raw, self.program = exported(self.plain, args, kwargs, dynamic_shapes)
        probe = copied(self.plain)
        self.made = calls_of(probe, lambda: outputs(probe, args, kwargs))
        self.replacements = Replacements(self.plain, raw, self.program, self.made)
        self.limits: Limits  # of the graph that was read last
        self.wholes: list[Whole] = []
        self.as_calls: set[str] = set()  # names of what folded and stays as a call
        self.removed: dict[str, None] = {}  # parametrizations
        self.untied: dict[str, str] = {}

    def read(self, module: nn.Module, shared: str) -> Graph:
        graph = read(self.program)
        self.limits = Limits(self.plain, self.program, graph, self.made, shared)
        self.wholes = wholes_of(self.plain, graph, self.limits.holders, self.made, self.replacements)
        return graph

    def solve(
        self,
        graph: Graph,
        *,
        skip: Collection[str],
        allow: Callable[[Node], bool] | None,
        progress: Callable[[int, int], None] | None,
    ) -> Plan:
        """The best plan that a module can follow: folds are taken back until all that is left can be done."""
        open_wholes = list(self.wholes)
        for whole in open_wholes:
            whole.open()
        while True:
            plan = solve(graph, skip=skip, allow=allow, progress=progress)
            gone = set(plan.order)
            odd = {node.name for node in unable(plan.edits)}
            blamed = {entry.name for entry in plan.entries if odd & set(entry.into)}
            numbers = (node for node in plan.order if node.name in blamed)
            stay = dict.fromkeys(numbers, "would change a number in the module's code")
            stay |= dict.fromkeys(half_gone(graph, plan.order), "another call of its module stays")
            for node, why in stay.items():
                assert isinstance(node.role, Affine)
                node.role.stay = why
            closed = [whole for whole in open_wholes if self._must_stay(whole, gone, plan)]
            open_wholes = [whole for whole in open_wholes if whole not in closed]
            if not stay and not closed and self.limits.agree(plan.edits):
                return plan

    def _must_stay(self, whole: Whole, gone: set[Node], plan: Plan) -> bool:
        """Close it if it cannot vanish as it should by this plan."""
        if whole.is_half_gone(gone):
            kept = {node.name for node in whole.maps if node not in gone}
            reasons = [entry.reason for entry in plan.entries if entry.name in kept]
            whole.close(reasons[-1] if reasons else "another call of its module stays")
        elif gone.issuperset(whole.maps) and not self.replacements.can_be_identity(whole.calls, gone):
            whole.close("another call writes into what it reads or gives")
        else:
            return False
        return True

    def write(self, target: nn.Module, graph: Graph, edits: Sequence[Edit]) -> nn.Module:
        values = [edit.old for edit in edits if isinstance(edit, SetValue) and edit.old is not None]
        changed = written(edits)
        here = [name for name in self.computed if name in changed]
        self.removed.update(dict.fromkeys(here))
        remove(target, here)
        tied = self.limits.tied
        self.untied.update({old.store: tied[old] for old in values if old in tied})
        if self.untied and self.options.shared == "error":
            raise UsageError(
                f"the parameter {', '.join(self.untied)} is shared with {', '.join(self.untied.values())}, "
                "and they need different values after the fold; allow that (shared='duplicate'), or keep "
                "what needs it (shared='skip')"
            )
        found: dict[str, Replacement] = {}
        gone = {edit.node: None for edit in edits if isinstance(edit, Bypass)}
        wholes = [whole for whole in self.wholes if whole.maps[0] in gone]
        whole = {node: (whole.path, whole.left) for whole in wholes for node in whole.maps}
        norms = [node for node in gone if node not in whole]
        for node in norms:  # all calls of one batch norm have the same replacement
            replacement = self.replacements(node, set(gone))
            same = found.get(mean_of(node), replacement) == replacement
            found[mean_of(node)] = replacement if same else None
        apply(target, edits, found, whole)
        self.as_calls = {node.name for node in norms if found[mean_of(node)] is None}
        return target

    def told(self, entries: Sequence[Entry]) -> list[Entry]:
        """The ledger: whose calls stay, and one line for each call of a module that is one map as a whole."""
        as_calls = dict.fromkeys(self.as_calls, "its call stays in eager mode, as the identity map")
        of = {name: whole.path for whole in self.wholes for name in whole.names}
        entries = [
            entry._replace(
                reason=as_calls.get(entry.name, entry.reason),
                into=tuple(dict.fromkeys(of.get(name, name) for name in entry.into)),
            )
            for entry in entries
        ]
        for whole in self.wholes:
            for number, nodes in enumerate(whole.calls.values()):
                names = {node.name for node in nodes}
                own = [entry for entry in entries if entry.name in names]
                if len({entry.outcome for entry in own}) == 1:
                    into = dict.fromkeys(name for entry in own for name in entry.into if name != whole.path)
                    name = whole.path if number == 0 else f"{whole.path}@{number}"
                    one = own[0]._replace(name=name, op=whole.kind, into=tuple(into))
                    at = entries.index(own[0])
                    entries = [entry for entry in entries if entry not in own]
                    entries.insert(at, one)
        return entries

    def compare(self, check: Check, before: nn.Module, after: nn.Module) -> Verification:
        return verify_modules(copied(before), copied(after), self.args, self.kwargs, check)

    def notes(self, report: Report) -> list[str]:
        """What holds whether anything folds or not."""
        notes = []
        norms = unseen(self.plain, self.program)
        if norms:
            notes.append(f"not called on these inputs, and so not looked at: {first(norms, 4)}")
        if self.module.training and report.kept:
            notes.append("the module is in training mode: if it is trained, call .eval() first")
        return notes

    def notes_of_folds(self) -> list[str]:
        """What the folds left behind."""
        notes, count = [], len(self.as_calls)
        if count:
            many = "batch norms stay as calls" if count > 1 else "batch norm stays as a call"
            notes.append(f"{count} folded {many} of the identity map")
        gone = self.removed
        notes += [f"the parametrization of {name} is removed: it is a plain parameter" for name in gone]
        pairs = self.untied.items()
        return notes + [f"{name} is no longer tied to {other}" for name, other in pairs if name != other]
