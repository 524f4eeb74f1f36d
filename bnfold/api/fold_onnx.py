"""`bnfold.fold_onnx`: the pipeline for ONNX models, which are edited in place, in a copy.

What not every fold needs (the check, half precision, dead channels: fifty modules) loads when it is used.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import onnx

from bnfold.api.pipeline import FrontEnd, Pass, Progress, fold
from bnfold.certificate import digest
from bnfold.errors import UsageError
from bnfold.fold.edits import Edit
from bnfold.fold.graph import Graph
from bnfold.fold.merge.view import View
from bnfold.onnx_graph.annotations import annotated, drop_annotations, dropped_note
from bnfold.onnx_graph.file.loaded import Loaded, load
from bnfold.onnx_graph.ledger import Ledger
from bnfold.onnx_graph.model.scopes import without_gc
from bnfold.onnx_graph.outline import snapshot
from bnfold.onnx_graph.read import read, scope_of
from bnfold.onnx_graph.write import apply
from bnfold.options import Check, CheckKeywords, Fold, FoldKeywords
from bnfold.report.fold import Report
from bnfold.report.guard import Guard
from bnfold.report.table import first
from bnfold.report.verification import Verification

if TYPE_CHECKING:
    import onnx_ir
    from torch.onnx import ONNXProgram
    from typing_extensions import Unpack

    from bnfold.onnx_graph.describe import Sketch
    from bnfold.onnx_graph.run.input_ranges import Range

    class Keywords(FoldKeywords, CheckKeywords, total=False):
        """All that `fold_onnx` takes beside the model."""


__all__ = ["fold_file", "fold_loaded", "fold_onnx", "front_end", "noting", "opened", "passes_of"]


@overload
def fold_onnx(
    model: str | Path | onnx.ModelProto, **options: Unpack[Keywords]
) -> tuple[onnx.ModelProto, Report]: ...
@overload
def fold_onnx(model: onnx_ir.Model, **options: Unpack[Keywords]) -> tuple[onnx_ir.Model, Report]: ...
@overload
def fold_onnx(model: ONNXProgram, **options: Unpack[Keywords]) -> tuple[ONNXProgram, Report]: ...
def fold_onnx(
    model: str | Path | onnx.ModelProto | onnx_ir.Model | ONNXProgram,
    *others: Any,
    verify: bool = True,
    shared: str = "duplicate",
    skip: Collection[str] = (),
    rtol: float | None = None,
    atol: float | None = None,
    inputs: Any = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    freeze_initializers: bool = False,
    target: str = "onnx",
    lower_batch_statistics: bool = False,
    precision: str | None = None,
    merge_branches: bool = True,
    drop_dead_channels: bool = False,
    input_ranges: Mapping[str, tuple[Any, Any]] | None = None,
    apart: bool = False,
    timeout: float | None = None,
    certificate: bool = False,
    check: str | None = None,
    quantize_for: str | None = None,
    calibration: Mapping[str, Any] | str | Path | None = None,
) -> tuple[onnx.ModelProto | onnx_ir.Model | ONNXProgram, Report]:
    """Fold every batch norm that can vanish from an ONNX model without changing what it computes.

    Args:
        model: a path, an `onnx.ModelProto`, an `onnx_ir.Model`, or what `torch.onnx.export` returns; it is
            not changed.
        others: there are none; the message tells where the file goes.
        verify: run both models on `inputs` (generated from `seed` if None) and compare.
        shared: what to do with a stored parameter whose users need different values: "duplicate" it, "skip"
            the fold, or raise an "error".
        skip: names of batch norms to leave alone.
        rtol: tolerance of the check, against the largest absolute value of each output; None: by type.
        atol: absolute tolerance, added to it.
        inputs: arrays by input name, or in order; one array where there is one input; None: generated.
        shapes: sizes for inputs with dynamic dimensions, by name.
        seed: of the generated inputs.
        freeze_initializers: inputs that have a stored value (initializers that are graph inputs too) are
            inputs no longer: a caller cannot override them, and they can be folded.
        target: "onnx", standard operators as they are, or "tensorrt": what no fold removes is fused into
            operators of the domain bnfold (which have function bodies), and constants that are computed are
            stored.
        lower_batch_statistics: batch norms with training_mode=1 become standard operators that compute the
            same; with "tensorrt" they become operators of bnfold anyway.
        precision: "fp16" or "bf16": convert the folded model (see `api.convert.convert`), whose tolerances
            rtol and atol then are; the fold itself is checked by type.
        merge_branches: after the fold, linear nodes that read one tensor and are summed become one, and so do
            two in a row, where that has no more multiplications and fewer nodes (docs/compression.md).
        drop_dead_channels: afterwards, take out every channel that is proven to be constant or unread.
        input_ranges: for that proof and for the check: by input name the lowest and the highest value that it
            ever has, numbers or arrays that broadcast against it, such as of shape (C, 1, 1) for images.
        apart: check in a process of its own, so that a crash in what runs the models is raised as an error.
        timeout: seconds that the check may take there; with it the check is apart.
        certificate: note in the report what became of each tensor, for `bnfold.prove` (docs/proof.md).
        check: "run" the models; or let a "proof" decide, and runs what it leaves undecided; or "both". None:
            a proof, and both where inputs or tolerances are given.
        quantize_for: what the folded model will be rounded to: "int8" (a scale for each output channel),
            "int8-per-tensor" (one for each weight) or "int4" (docs/int8.md). Branches become one only where
            that adds no more than 0.5 dB of noise, as predicted from the weights; below 8 bits none do.
        calibration: with "int8" or "int8-per-tensor", samples as for `bnfold.correct` (arrays by input name,
            samples along the first axis, or a file of them). The fold with merged branches and the one with
            all apart are then quantized by onnxruntime and corrected, on four sets of these samples, and the
            merged one is taken only if its mean is no more than 0.5 dB below, on others of them.

    Returns:
        The folded model (for a path: an `onnx.ModelProto`), of the kind that was given, and the report.

    Raises:
        ModelError: the model cannot be read. UsageError: a name or an option is unknown.
        VerifyError: the folded model does not compute the same; the message names the first fold or merge
            that broke it.
    """
    if others:
        raise UsageError(
            "fold_onnx takes one model and gives the folded one with a report: "
            "folded, report = bnfold.fold_onnx(model); onnx.save(folded, path)"
        )
    options = Fold(
        shared=shared,
        skip=skip,
        freeze_initializers=freeze_initializers,
        target=target,
        lower_batch_statistics=lower_batch_statistics,
        merge_branches=merge_branches,
        drop_dead_channels=drop_dead_channels,
        input_ranges=input_ranges,
        precision=precision,
        certificate=certificate,
        quantize_for=quantize_for,
        calibration=calibration,
    )
    loaded, as_given = opened(model, "fold_onnx")
    how = Check(verify, inputs, shapes, seed, rtol, atol, apart, timeout, check=check)
    folded, report = fold_loaded(loaded, options, how, drawn=True)
    return as_given(folded), report


def opened(model: Any, function: str) -> tuple[Loaded, Callable[[Loaded], Any]]:
    """A model of any kind that `fold_onnx` takes, and what makes one of that kind again."""
    program = getattr(sys.modules.get("torch.onnx"), "ONNXProgram", None)  # who has one has loaded torch
    if program is not None and isinstance(model, program):
        loaded, as_model = opened(model.model, function)
        return loaded, lambda folded: program(as_model(folded), model.exported_program)
    if not hasattr(model, "graph") or isinstance(model, onnx.ModelProto):
        return load(model), Loaded.to_proto
    import onnx_ir

    if not isinstance(model, onnx_ir.Model):
        kind = type(model).__name__
        wanted = "a path, an onnx.ModelProto, an onnx_ir.Model or what torch.onnx.export returns"
        raise UsageError(f"{function} takes {wanted}, not {kind}")
    return load(onnx_ir.to_proto(model)), lambda loaded: onnx_ir.from_proto(loaded.to_proto())


def fold_file(
    path: str | Path,
    options: Fold = Fold(),  # noqa: B008  (frozen)
    check: Check = Check(),  # noqa: B008
    progress: Progress | None = None,
) -> tuple[Loaded, Report]:
    """`fold_onnx` for a file, without ever holding the whole model in memory; the result is ready to be
    saved.
    """
    return fold_loaded(load(path), options, check, progress)


def fold_loaded(
    loaded: Loaded,
    options: Fold = Fold(),  # noqa: B008
    check: Check = Check(),  # noqa: B008
    progress: Progress | None = None,
    sketch: Sketch | None = None,
    drawn: bool = False,
) -> tuple[Loaded, Report]:
    """The pipeline, then half precision if that is asked for. Without verification `loaded` is edited.

    sketch: is shown the model before it is changed. drawn: the report keeps both graphs, for its page.
    """
    before, named = digest(loaded.inlined()) if options.certificate else "", annotated(loaded)
    graph = snapshot(loaded.proto) if drawn else None
    also = _Also(bool(named), sketch, drawn)
    folded, report = _frozen_or_not(loaded, options, check, progress, also)
    report.notes += dropped_note(named, folded)
    if graph is not None:
        report.graphs = graph, snapshot(folded.proto)
    if report.certificate is not None:
        report.certificate.original, report.certificate.folded = before, digest(folded.inlined())
    return folded, report


class _Also(NamedTuple):
    """What is noted on the way.

    named: whether tensors have annotations, which may have to go. sketch, drawn: as for `fold_loaded`.
    """

    named: bool
    sketch: Sketch | None
    drawn: bool


def _frozen_or_not(
    loaded: Loaded, options: Fold, check: Check, progress: Progress | None, also: _Also
) -> tuple[Loaded, Report]:
    if options.freeze_initializers:
        loaded, names = frozen(loaded)
        less = replace(options, freeze_initializers=False)
        loaded, report = _frozen_or_not(loaded, less, check, progress, also)
        if report.certificate is not None:
            report.certificate.frozen = tuple(names)
        note = f"inputs no longer: {first(names, 4)}" if names else "no input has a stored value"
        report.notes.insert(0, note)
        return loaded, report
    precision = options.precision
    if precision is None:
        return _folded(loaded, options, check, progress, also)
    from bnfold.api import convert

    convert.check(loaded, precision)
    ranges = ranges_in(loaded, options)
    if options.input_ranges and check.inputs is None:
        raise UsageError("with input ranges, half precision is measured on inputs that you give")
    original = loaded.copy() if check.verify else None
    folded, report = _folded(loaded, options, replace(check, rtol=None, atol=None), progress, also)
    how = replace(check, ranges=ranges)
    folded, report.precision = convert.convert(folded, precision, how, original=original)
    return folded, report


def _folded(
    loaded: Loaded, options: Fold, check: Check, progress: Progress | None, also: _Also
) -> tuple[Loaded, Report]:
    ranges = ranges_in(loaded, options)
    check = replace(check, ranges=ranges)
    front, ledger = replace(front_end(check), drawn=also.drawn), None
    if also.sketch is not None:
        front = noting(front, also.sketch)
    if options.certificate or also.named or (check.verify and check.by != "run"):
        ledger = Ledger()
        front = replace(front, watch=ledger.watch)
    if ledger is not None and check.by != "run":
        front = replace(front, check=partial(_checked, check, ledger))
    found = None if options.calibration is None else _guard(loaded, options, ranges, progress)
    if found is not None:
        front = replace(front, branches=found.taken == "merged")
    passes = passes_of(options, ranges, ledger)
    done = fold(front, loaded, options, "model", verify=check.verify, passes=passes, progress=progress)
    if ledger is not None and also.named:
        drop_annotations(done.model, ledger.changes)
    if ledger is not None and options.certificate:
        done.report.certificate = ledger.certificate(ranges)
    done.report.guard = found
    return done.model, done.report


def _guard(loaded: Loaded, options: Fold, ranges: dict[str, Range], progress: Progress | None) -> Guard:
    """What quantizing the fold with merged branches and without shows."""
    from bnfold.api.guard import guard

    def folded(branches: bool) -> Loaded:
        front = replace(front_end(Check(verify=False)), branches=branches)
        return fold(
            front, loaded.copy(), options, "model", verify=False, passes=passes_of(options, ranges)
        ).model

    assert options.quantize_for is not None
    return guard(loaded, folded, options.quantize_for, options.calibration, progress)


def frozen(loaded: Loaded) -> tuple[Loaded, list[str]]:
    """A copy whose initializers are no inputs, and the names of those that were.

    Before IR 4 all are listed as inputs, and none can be overridden.
    """
    loaded = loaded.copy()
    graph = loaded.proto.graph
    stored = {tensor.name for tensor in graph.initializer if loaded.proto.ir_version >= 4}
    left = [entry for entry in graph.input if entry.name not in stored]
    names = [entry.name for entry in graph.input if entry.name in stored]
    if names:
        del graph.input[:]
        graph.input.extend(left)
    return loaded, names


def ranges_in(loaded: Loaded, options: Fold) -> dict[str, Range]:
    """What values the model's inputs keep to, as the options say."""
    if not options.input_ranges:
        return {}
    from bnfold.onnx_graph.run.input_ranges import ranges_of
    from bnfold.onnx_graph.run.inputs import wanted

    return ranges_of(wanted(loaded), options.input_ranges)


def front_end(check: Check) -> FrontEnd[Loaded]:
    """That of ONNX models."""
    return FrontEnd(
        read=read,
        write=_write,
        check=partial(_compare, check),
        view=partial(View, scope=scope_of),
        copy=Loaded.copy,
        around=without_gc,  # when it looks again, all that the steps made is garbage: one look does
    )


def noting(front: FrontEnd[Loaded], sketch: Sketch) -> FrontEnd[Loaded]:
    """The same front end, which shows what it reads to a sketch."""

    def noted(loaded: Loaded, shared: str) -> Graph:
        graph = front.read(loaded, shared)
        sketch.draw(loaded, graph)
        return graph

    return replace(front, read=noted)


def _compare(check: Check, before: Loaded, after: Loaded) -> Verification:
    from bnfold.verify.process import verify

    return verify(before, after, check)


def _checked(check: Check, ledger: Ledger, before: Loaded, after: Loaded) -> Verification:
    from bnfold.api.checked import compare

    return compare(before, after, check, ledger.certificate(check.ranges or {}))


def _write(loaded: Loaded, graph: Graph, edits: Sequence[Edit]) -> Loaded:
    apply(loaded, graph, edits)
    return loaded


def _has_dropped(report: Report) -> bool:
    return report.dropped is not None and bool(report.dropped.layers)


def passes_of(options: Fold, ranges: Mapping[str, Range], ledger: Ledger | None = None) -> list[Pass[Loaded]]:
    """What is done to a folded ONNX model. ledger: which is told what becomes of its tensors."""

    def dropping(loaded: Loaded, report: Report) -> Loaded:
        from bnfold.passes.channels.drop import drop_dead_channels as drop

        report.dropped = drop(loaded, ranges, options.shared, None if ledger is None else ledger.watch)
        return loaded

    def rewriting(loaded: Loaded, report: Report) -> Loaded:
        from bnfold.passes.deploy.rewrite import rewrite

        made = rewrite(loaded, options.target, options.lower_batch_statistics, options.skip)
        report.rewritten, notes = made
        report.notes += notes
        return loaded

    passes = []
    if options.drop_dead_channels:
        passes.append(Pass("dropping dead channels", dropping, _has_dropped))
    if options.target != "onnx" or options.lower_batch_statistics:
        passes.append(Pass("the rewriting for the target", rewriting))
    return passes
