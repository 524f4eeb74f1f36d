"""Read, solve, write, merge, run the passes, check, blame: in that order, for every kind of model. Where a
merge, zeros that were taken in, or a new addition make room for more folds, it is solved again.

A front end is four functions (`FrontEnd`): what makes a graph of a model, what carries a plan's edits out on
the model, what merging may look at, and what compares two models. ONNX files, exported torch programs and
torch modules each have one; so has a toy in tests/api/test_pipeline.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Generic, Protocol, TypeVar

from bnfold.fold.claims import Claims
from bnfold.fold.edits import AddBias, Edit, SetValue
from bnfold.fold.graph import Graph, Node
from bnfold.fold.merge.noise import Judge
from bnfold.fold.merge.plan import MergePlan, maps_beside, merge_all, mergeable
from bnfold.fold.merge.view import View
from bnfold.fold.roles import Affine, Linear
from bnfold.fold.solve import Plan, solve
from bnfold.options import Fold, known
from bnfold.report.fold import Entry, Report
from bnfold.report.verification import Verification
from bnfold.verify.blame import ALL, Part, Work, judge

__all__ = ["Done", "FrontEnd", "Pass", "Progress", "Solve", "fold", "run"]

M = TypeVar("M")
LOG = logging.getLogger("bnfold")
UNTRAINED = (
    "all batch norms ({}) have mean 0 and variance 1, as before training: are these the trained weights? "
    "Fewer batch norms may fold then, since a trained one has negative scales, and shifts"
)
UNASKED = "int8-per-tensor"  # what a report warns of
Progress = Callable[[int, int, str], None]  # done, of how many, what


class Solve(Protocol):
    """What chooses the folds; `fold.solve.solve`, or one that takes back what a front end cannot write."""

    def __call__(
        self,
        graph: Graph,
        *,
        skip: Collection[str],
        allow: Callable[[Node], bool] | None,
        progress: Callable[[int, int], None] | None,
    ) -> Plan: ...


def _same(model: M) -> M:
    return model


@dataclass(frozen=True)
class FrontEnd(Generic[M]):
    """One kind of model.

    read: the solver's view of a model, told what becomes of a stored value whose users need different ones.
    write: the edits, carried out; gives the new model, which may be the old one, edited in place.
    view: what merging may look at, given the nodes that will be gone and the names to skip; None: no merging,
    and what was written is not read again (the program of a module, for one, does not change with it).
    check: what a comparison of the model before and after finds.
    copy: a model that `write` may edit while the old one is still needed; the model itself if `write` makes a
    new one. solve: what plans. branches: whether those of a sum may become one. around: a context for all of
    the work but the check. watch: told what becomes of each tensor before edits are carried out, and asked
    when they are; None: nobody wants to know. drawn: whether the report tells the way of each fold, for its
    page.
    """

    read: Callable[[M, str], Graph]
    write: Callable[[M, Graph, Sequence[Edit]], M]
    check: Callable[[M, M], Verification]
    view: Callable[[Collection[Node], Collection[str]], View] | None = None
    copy: Callable[[M], M] = _same
    solve: Solve = solve
    branches: bool = True
    around: Callable[[], AbstractContextManager[None]] = nullcontext
    watch: Callable[[Graph, Claims, Sequence[Edit]], Callable[[], None]] | None = None
    drawn: bool = False

    def carry_out(self, model: M, graph: Graph, plan: Plan | MergePlan) -> M:
        """The model, with the edits of a plan."""
        noted = None if self.watch is None else self.watch(graph, plan.claims(), plan.edits)
        model = self.write(model, graph, plan.edits)
        if noted is not None:
            noted()
        return model


@dataclass(frozen=True)
class Pass(Generic[M]):
    """What is done to the folded model. `name` goes on in "no fold broke it, but ... did".

    makes_room: whether it has changed what more could fold or merge, by its report.
    """

    name: str
    run: Callable[[M, Report], M]
    makes_room: Callable[[Report], bool] = lambda report: False


@dataclass
class Done(Generic[M]):
    """A model, what became of it, and the names of what folded, in the order in which it did.

    held: names of what is no matter of folding, but of merging. judge: who weighs what rounding adds.
    untrained: how many batch norms there are, if all have the statistics of a new one; else 0.
    """

    model: M
    report: Report
    order: list[str]
    held: frozenset[str]
    judge: Judge
    untrained: int = 0

    @property
    def warnings(self) -> list[str]:
        """What the model looks like that its user may not know."""
        return [UNTRAINED.format(self.untrained)] if self.untrained else []

    def work(self, passes: Sequence[Pass[M]] = ()) -> Work:
        """What was done, for `verify.blame.judge`."""
        merges = [merge.name for merge in self.report.merged]
        return Work(self.order, merges, [one.name for one in passes])


def run(
    front: FrontEnd[M],
    model: M,
    options: Fold,
    passes: Sequence[Pass[M]] = (),
    part: Part = ALL,
    progress: Progress | None = None,
) -> Done[M]:
    """All but the check. `model` may be edited in place; `part`: how much of the work is done.

    Raises:
        UsageError: a name to skip is no batch norm's, or a stored value has to be copied and must not be.
    """
    with front.around():
        graph = front.read(model, options.shared)
        if options.skip:
            norms = [node.name for node in graph.nodes if isinstance(node.role, Affine)]
            known("skip", options.skip, norms, "such batch norm")
        held, untrained = _held(front, graph, options), _untrained(graph)
        plan = front.solve(
            graph,
            skip=options.skip,
            allow=_allowed(part, held),
            progress=None if progress is None else (lambda count, of: progress(count, of, "folding")),
        )
        entries = [_branch(e) if e.name in held else e for e in plan.entries] if held else plan.entries
        report = Report(
            entries, quantize_for=options.quantize_for, routes=plan.routes() if front.drawn else {}
        )
        judge = Judge(options.quantize_for or UNASKED, options.quantize_for is not None, front.branches)
        done = Done(model, report, [node.name for node in plan.order], held, judge, untrained)
        LOG.info("folded: %d; kept so far: %d", len(plan.order), len(report.kept))
        merges = options.merge_branches and front.view is not None and part.merges != 0
        if front.view is not None and merges:
            merges = mergeable(graph, front.view(set(plan.order), options.skip), done.report)
        maps = [node.role for node in graph.nodes if isinstance(node.role, Affine)]
        changed = len(maps) > len(plan.order) and _changes_maps(plan.edits)
        room = changed or any(map(_holds_zeros, maps)) or _adds_a_node(plan.edits)
        if changed and front.view is not None:
            merges = options.merge_branches and part.merges != 0
        done.model = front.carry_out(model, graph, plan)
        room = room and bool(plan.order) and front.view is not None
        graph.clear()  # it describes the model no longer
        del graph, plan
        while room and _fold_again(front, done, options, part, _read(front, done, options)):
            merges = options.merge_branches and front.view is not None and part.merges != 0
        if merges:
            _merge(front, done, options, part)
            LOG.info("merged into %d linear nodes", len(report.merged))
        for one in passes[: part.passes]:
            done.model = one.run(done.model, done.report)
            LOG.info("done: %s", one.name)
            if front.view is not None and one.makes_room(done.report):
                while _fold_again(front, done, options, part, _read(front, done, options)):
                    pass
                if options.merge_branches and part.merges != 0:
                    _merge(front, done, options, part)
    return done


def fold(
    front: FrontEnd[M],
    model: M,
    options: Fold,
    kind: str,
    *,
    verify: bool,
    passes: Sequence[Pass[M]] = (),
    progress: Progress | None = None,
) -> Done[M]:
    """All of it. Without verification nobody needs the original: it is edited.

    Args:
        front: of this kind of model.
        model: it is not changed if it is verified.
        options: of the fold.
        kind: what to call the model in notes.
        verify: check the result, and look for what is to blame if it is wrong.
        passes: what is done after folding and merging, in this order.
        progress: told about how far the fold is.

    Raises:
        UsageError: as `run`. VerifyError: the result does not compute the same.
    """
    done = run(front, front.copy(model) if verify else model, options, passes, progress=progress)
    report = done.report
    if not (done.order or report.merged):
        dropped = report.dropped is not None and report.dropped.layers
        same = not (report.rewritten or report.notes or dropped)
        report.notes.insert(0, f"nothing to fold{f': the {kind} is unchanged' if same else ''}")
        if same:
            done.model = model
            report.notes += done.warnings
            return done
    report.notes += done.warnings
    if verify:

        def again(part: Part) -> Verification:
            return front.check(model, run(front, front.copy(model), options, passes, part).model)

        found = front.check(model, done.model)
        LOG.info("checked: %s", found.status)
        judge(report, found, done.work(passes), again)
    return done


def _merge(front: FrontEnd[M], done: Done[M], options: Fold, part: Part) -> None:
    """Merge branches, in rounds; what is read is read anew each time, since the graph is another one then."""
    assert front.view is not None

    def write(graph: Graph, plan: MergePlan) -> None:
        done.model = front.carry_out(done.model, graph, plan)

    look, read = front.view, partial(_read, front, done, options)
    merged = -1
    while merged < len(done.report.merged):
        merged = len(done.report.merged)
        graph = merge_all(done.report, read, write, lambda: look((), options.skip), done.judge, part.merges)
        if merged == len(done.report.merged) or not _fold_again(front, done, options, part, graph):
            return


def _read(front: FrontEnd[M], done: Done[M], options: Fold) -> Graph:
    """The solver's view of what was made so far; what an error would end is left out now."""
    return front.read(done.model, "duplicate" if options.shared == "duplicate" else "skip")


def _fold_again(front: FrontEnd[M], done: Done[M], options: Fold, part: Part, graph: Graph) -> bool:
    """Fold what could not go before: it stands beside a merged node, or beside one that has taken zeros in.

    False if nothing more goes.
    """
    left = any(isinstance(node.role, Affine) for node in graph.nodes)
    allow = _allowed(part, done.held)
    plan = front.solve(graph, skip=options.skip, allow=allow, progress=None) if left else Plan()
    if not plan.order:
        return False
    done.model = front.carry_out(done.model, graph, plan)
    done.order += [node.name for node in plan.order]
    if front.drawn:
        done.report.routes |= plan.routes()
    gone = {entry.name: entry for entry in plan.entries if entry.outcome == "folded"}
    done.report.entries = [
        gone.get(entry.name, entry) if entry.outcome == "kept" else entry for entry in done.report.entries
    ]
    return True


def _untrained(graph: Graph) -> int:
    """How many batch norms there are, if all have the mean and variance that a new one has; else 0."""
    count = 0
    for node in graph.nodes:
        role = node.role
        if isinstance(role, Affine) and role.kind == "norm":
            stored = [role.constants.get(name) for name in ("mean", "var")]
            if any(
                found is None or (found[1].load() != usual).any()
                for found, usual in zip(stored, (0, 1), strict=True)
            ):
                return 0  # mostly by the first one
            count += 1
    return count


def _holds_zeros(role: Affine) -> bool:
    return not role.plain and not role.scale.all()


def _adds_a_node(edits: Sequence[Edit]) -> bool:
    """The bias of a product that has no place for one becomes an addition, which takes more in."""
    biased = (edit.node.role for edit in edits if isinstance(edit, AddBias))
    return any(not isinstance(role, Linear) or role.costs > 0 for role in biased)


def _changes_maps(edits: Sequence[Edit]) -> bool:
    """A map that has taken others in may go where it could not; or it varies along other axes, and is no part
    of a sum any more that was too much for one node.
    """
    return any(isinstance(edit, SetValue) and isinstance(edit.node.role, Affine) for edit in edits)


def _held(front: FrontEnd[M], graph: Graph, options: Fold) -> frozenset[str]:
    """Batch norms that are branches beside linear nodes, where the result will be quantized.

    Folded around a sum they would spread its channels, and those of the layers before and behind it.
    """
    if options.quantize_for is None or front.view is None:
        return frozenset()
    return frozenset(maps_beside(graph, front.view((), options.skip))).difference(options.skip)


def _branch(entry: Entry) -> Entry:
    reason = "is a branch beside linear nodes: its scales would spread the channels of the layers around"
    return entry._replace(reason=reason, blocked_by="", cure="")


def _allowed(part: Part, held: Collection[str]) -> Callable[[Node], bool] | None:
    if part.folds is None and not held:
        return None
    return lambda node: node.name not in held and (part.folds is None or node.name in part.folds)
