"""Read, solve, write, verify: in that order, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bnfold.errors import BnfoldError, UsageError, VerifyError
from bnfold.report.fold import Report

if TYPE_CHECKING:
    from bnfold.fold.graph import Node
    from bnfold.onnx_graph.file.loaded import Loaded
    from bnfold.onnx_graph.run.input_ranges import Range
    from bnfold.report.channels import Dropped

__all__ = ["SHARED", "check_names", "check_options", "fold_file", "fold_onnx"]

SHARED = ("duplicate", "skip", "error")
TARGETS = ("onnx", "tensorrt")
Progress = Callable[[int, int, str], None]


def fold_onnx(
    model: Any,
    *,
    verify: bool = True,
    shared: str = "duplicate",
    skip: Collection[str] = (),
    rtol: float | None = None,
    atol: float | None = None,
    inputs: Mapping[str, Any] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    target: str = "onnx",
    lower_batch_statistics: bool = False,
    precision: str | None = None,
    merge_branches: bool = True,
    drop_dead_channels: bool = False,
    input_ranges: Mapping[str, tuple[Any, Any]] | None = None,
) -> tuple[Any, Report]:
    """Fold every batch norm that can vanish from an ONNX model without changing what it computes.

    Args:
        model: a path, an `onnx.ModelProto` or an `onnx_ir.Model`; it is not changed.
        verify: run both models on `inputs` (generated from `seed` if None) and compare.
        shared: what to do with a stored parameter whose users need different values: "duplicate" it, "skip"
        the fold,
            or raise an "error".
        skip: names of batch norms to leave alone.
        rtol: tolerance of the check, against the largest absolute value of each output; None: by type.
        atol: absolute tolerance, added to it.
        inputs: arrays by input name; None: generated.
        shapes: sizes for inputs with dynamic dimensions, by name.
        seed: of the generated inputs.
        target: "onnx", standard operators as they are, or "tensorrt": what no fold removes is fused into
            operators of the domain bnfold (which have function bodies), and constants that are computed are
            stored.
        lower_batch_statistics: batch norms with training_mode=1 become standard operators that compute the
            same; with "tensorrt" they become operators of bnfold anyway.
        precision: "fp16" or "bf16": convert the folded model (see `api_precision.convert`), whose tolerances
            rtol and atol then are; the fold itself is checked by type.
        merge_branches: after the fold, linear nodes that read one tensor and are summed become one, and so do
            two in a row, where that has no more multiplications and fewer nodes (docs/compression.md).
        drop_dead_channels: afterwards, take out every channel that is proven to be constant or unread.
        input_ranges: for that proof and for the check: by input name the lowest and the highest value that it
            ever has, numbers or arrays that broadcast against it, such as of shape (C, 1, 1) for images.

    Returns:
        The folded model (for a path: an `onnx.ModelProto`), of the kind that was given, and the ledger.

    Raises:
        ModelError: the model cannot be read. UsageError: a name or an option is unknown.
        VerifyError: the folded model does not compute the same; the message names the first fold or merge
            that broke it.
    """
    from bnfold.onnx_graph.file.loaded import load

    wrap = None
    if hasattr(model, "graph") and not hasattr(model, "SerializeToString"):
        import onnx_ir

        if not isinstance(model, onnx_ir.Model):
            kind = type(model).__name__
            raise UsageError(f"fold_onnx takes a path, an onnx.ModelProto or an onnx_ir.Model, not {kind}")
        wrap = onnx_ir.from_proto
        model = onnx_ir.to_proto(model)
    loaded = load(model)
    folded, report = _folded(
        loaded,
        precision,
        verify=verify,
        shared=shared,
        skip=skip,
        rtol=rtol,
        atol=atol,
        inputs=inputs,
        shapes=shapes,
        seed=seed,
        target=target,
        lower_batch_statistics=lower_batch_statistics,
        merge_branches=merge_branches,
        drop_dead_channels=drop_dead_channels,
        input_ranges=input_ranges,
    )
    proto = folded.to_proto()
    return (wrap(proto) if wrap is not None else proto), report


def fold_file(path: str | Path, *, precision: str | None = None, **options: Any) -> tuple[Loaded, Report]:
    """`fold_onnx` for a file, without ever holding the whole model in memory; the result is ready to be
    saved.
    """
    from bnfold.onnx_graph.file.loaded import load

    return _folded(load(path), precision, **options)


def _folded(loaded: Loaded, precision: str | None, **options: Any) -> tuple[Loaded, Report]:
    """`fold_loaded`, then half precision if that is asked for."""
    if precision is None:
        return fold_loaded(loaded, **options)
    from bnfold.api import convert as api_precision

    api_precision.check(loaded, precision)
    if options.get("input_ranges") and options.get("inputs") is None:
        raise UsageError("with input ranges, half precision is measured on inputs that you give")
    names = ("inputs", "shapes", "seed", "rtol", "atol", "verify")
    chosen = {name: options[name] for name in names if name in options}
    original = loaded.copy() if options.get("verify", True) else None
    folded, report = fold_loaded(loaded, **{**options, "rtol": None, "atol": None})
    folded, report.precision = api_precision.convert(folded, precision, original=original, **chosen)
    return folded, report


def check_options(shared: str, skip: Collection[str], target: str = "onnx") -> None:
    check_choice("shared", shared, SHARED)
    check_choice("target", target, TARGETS)
    if isinstance(skip, str):
        raise UsageError("skip takes a collection of names, not one string")


def check_choice(name: str, value: str, valid: Collection[str]) -> None:
    if value not in valid:
        raise UsageError(f"{name}={value!r} is unknown. Note: valid choices are {', '.join(valid)}")


def fold_loaded(
    loaded: Loaded,
    *,
    verify: bool = True,
    shared: str = "duplicate",
    skip: Collection[str] = (),
    rtol: float | None = None,
    atol: float | None = None,
    inputs: Mapping[str, Any] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    target: str = "onnx",
    lower_batch_statistics: bool = False,
    merge_branches: bool = True,
    drop_dead_channels: bool = False,
    input_ranges: Mapping[str, tuple[Any, Any]] | None = None,
    progress: Progress | None = None,
) -> tuple[Loaded, Report]:
    """The steps themselves; see `fold_onnx`. Without verification nobody needs the original: it is edited."""
    from bnfold.passes.deploy.rewrite import rewrite

    check_options(shared, skip, target)
    ranges = _ranges(loaded, drop_dead_channels, input_ranges)
    limits = Limits(merges=None if merge_branches else 0)
    folded, report, order = _fold(loaded.copy() if verify else loaded, skip, shared, limits, progress)
    if drop_dead_channels:
        report.dropped = _drop(folded, ranges, shared)
    report.rewritten, notes = rewrite(folded, target, lower_batch_statistics, skip)
    report.notes += notes
    if not (order or report.merged):
        same = not (report.rewritten or report.notes or (report.dropped and report.dropped.layers))
        report.notes.insert(0, f"nothing to fold{': the model is unchanged' if same else ''}")
        if same:
            return folded, report
    if verify:
        _verify(
            loaded,
            folded,
            report,
            order,
            skip,
            shared,
            {"rtol": rtol, "atol": atol, "inputs": inputs, "shapes": shapes, "seed": seed, "ranges": ranges},
        )
    return folded, report


class Limits(NamedTuple):
    """How much of the work is done (None: all): folds of these nodes, and the first so many merges."""

    folds: Collection[str] | None = None
    merges: int | None = None


def _ranges(loaded: Loaded, drop: bool, given: Mapping[str, tuple[Any, Any]] | None) -> dict[str, Range]:
    if not given:
        return {}
    if not drop:
        raise UsageError("input ranges have nothing to do unless dead channels are dropped")
    from bnfold.onnx_graph.run.input_ranges import ranges_of
    from bnfold.onnx_graph.run.inputs import wanted

    return ranges_of(wanted(loaded), given)


def _drop(folded: Loaded, ranges: Mapping[str, Range], shared: str) -> Dropped:
    from bnfold.passes.channels.drop import drop_dead_channels as drop

    return drop(folded, ranges, shared)


def _fold(
    result: Loaded,
    skip: Collection[str],
    shared: str,
    limits: Limits,
    progress: Progress | None = None,
) -> tuple[Loaded, Report, list[str]]:
    """One fold, in place, and the merging of branches after it; the names of what folded, in that order."""
    from bnfold.fold.merge.plan import merge_all, mergeable
    from bnfold.fold.merge.view import View
    from bnfold.fold.solve import solve
    from bnfold.onnx_graph.merge import place
    from bnfold.onnx_graph.model.scopes import without_gc
    from bnfold.onnx_graph.read import read
    from bnfold.onnx_graph.write import apply

    told = None if progress is None else (lambda done, total: progress(done, total, "folding"))
    only = limits.folds
    allow: Callable[[Node], bool] | None = None if only is None else (lambda node: node.name in only)

    def steps() -> tuple[Report, list[str]]:
        graph = read(result, shared=shared)
        check_names(graph.nodes, skip)
        plan = solve(graph, skip=skip, allow=allow, progress=told)
        report, order = Report(plan.entries), [node.name for node in plan.order]
        merging = limits.merges != 0 and mergeable(graph, View(set(plan.order), skip, place), report)
        apply(result, graph, plan.edits)
        if merging:  # all that is read is read anew: the graph is another one now
            merge_all(
                report,
                lambda: read(result, shared="duplicate" if shared == "duplicate" else "skip"),
                lambda graph, edits: apply(result, graph, edits),
                lambda: View((), skip, place),
                limits.merges,
            )
        return report, order

    with without_gc():  # when it looks again, all that the steps made is garbage: one look does
        report, order = steps()
    return result, report, order


def check_names(nodes: Collection[Node], skip: Collection[str]) -> None:
    from bnfold.fold.roles import Affine

    if not skip:
        return
    names = [node.name for node in nodes if isinstance(node.role, Affine)]
    for name in skip:
        if name not in names:
            some = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
            raise UsageError(f"skip {name!r}: no such batch norm. Note: valid choices are {some or '(none)'}")


def _verify(
    loaded: Loaded,
    folded: Loaded,
    report: Report,
    order: list[str],
    skip: Collection[str],
    shared: str,
    options: dict[str, Any],
) -> None:
    from bnfold.verify.models import first_bad, verify

    report.verification = verify(loaded, folded, **options)
    if report.verification.status == "not run":
        report.notes.append(f"not verified: {report.verification.reason}")
    if report.verification.status != "failed":
        return

    def passes(count: int, merges: int = 0, drop: bool = False) -> bool:
        limits = Limits(frozenset(order[:count]), merges)
        part, _, _ = _fold(loaded.copy(), skip, shared, limits)
        if drop:
            _drop(part, options["ranges"], shared)
        return bool(verify(loaded, part, **options).status != "failed")

    merged, all_ = report.merged, len(order)
    try:
        if not passes(all_):
            bad = f"the first fold that broke it is {order[first_bad(all_, passes) - 1]}"
        elif merged and not passes(all_, len(merged)):
            count = first_bad(len(merged), lambda merges: passes(all_, merges))
            bad = f"no fold broke it, but the merging of branches into {merged[count - 1].name} did"
        elif report.dropped is not None and not passes(all_, len(merged), drop=True):
            bad = "no fold broke it, but dropping dead channels did"
        else:
            bad = "no fold broke it, but the rewriting for the target did"
    except BnfoldError:
        bad = "which fold broke it could not be found out"
    said = f"the folded model does not compute the same: {bad}"
    raise VerifyError(f"{said}\n{report.verification}")
