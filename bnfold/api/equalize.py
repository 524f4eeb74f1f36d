"""Weight ranges of a model balanced for int8, exactly: read, choose, write, verify."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import onnx

from bnfold.api.fold_onnx import fold_loaded, opened, ranges_in
from bnfold.api.guard import tried
from bnfold.errors import UsageError
from bnfold.onnx_graph.annotations import annotated, dropped_note
from bnfold.onnx_graph.describe import Sketch
from bnfold.onnx_graph.file.loaded import Loaded
from bnfold.onnx_graph.run.inputs import Given
from bnfold.options import BRANCHES_FROM, QUANTIZERS, Check, CheckKeywords, Fold, FoldKeywords, refuse_others
from bnfold.passes.equalize import balance
from bnfold.progress import Advance
from bnfold.report.equalize import EqualizeReport
from bnfold.verify.blame import conclude
from bnfold.verify.process import verify as compare

if TYPE_CHECKING:
    import onnx_ir
    from typing_extensions import Unpack

    class Keywords(FoldKeywords, CheckKeywords, total=False):
        """All that `equalize_onnx` takes beside the model."""

        fold: bool
        split_relu6: bool


__all__ = ["equalize_loaded", "equalize_onnx"]

ONE_SCALE = "int8-per-tensor"  # what equalizing is for


@overload
def equalize_onnx(
    model: str | Path | onnx.ModelProto, **options: Unpack[Keywords]
) -> tuple[onnx.ModelProto, EqualizeReport]: ...
@overload
def equalize_onnx(
    model: onnx_ir.Model, **options: Unpack[Keywords]
) -> tuple[onnx_ir.Model, EqualizeReport]: ...
def equalize_onnx(
    model: str | Path | onnx.ModelProto | onnx_ir.Model,
    *,
    fold: bool = True,
    split_relu6: bool = False,
    verify: bool = True,
    shared: str = "duplicate",
    skip: Collection[str] = (),
    rtol: float | None = None,
    atol: float | None = None,
    inputs: Mapping[str, Any] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    freeze_initializers: bool = False,
    lower_batch_statistics: bool = False,
    merge_branches: bool = True,
    drop_dead_channels: bool = False,
    input_ranges: Mapping[str, tuple[Any, Any]] | None = None,
    apart: bool = False,
    timeout: float | None = None,
    quantize_for: str | None = None,
    calibration: Mapping[str, Any] | str | Path | None = None,
    **others: Any,
) -> tuple[onnx.ModelProto | onnx_ir.Model, EqualizeReport]:
    """Balance the weight ranges of an ONNX model without changing what it computes, for int8 to come.

    Channels between layers are carried at other sizes, by powers of two: float32 computes the same bits,
    short of its range. Cross-layer equalization (Nagel et al., 2019), over regions instead of pairs.

    Args:
        model: a path, an `onnx.ModelProto` or an `onnx_ir.Model`; it is not changed.
        fold: fold the batch norms first, as `fold_onnx` does.
        split_relu6: a Clip has one bound for all channels and so lets no channel change alone; let a Min (or
            a Max) with one for each channel follow it, where that pays. Exact, and one node more.
        verify: run the models before and after on `inputs` (generated from `seed` if None) and compare.
        shared: what to do with a stored parameter whose users need different values; see `fold_onnx`.
        skip: names of batch norms that the fold leaves alone.
        rtol: tolerance of the check, against the largest absolute value of each output; None: by type.
        atol: absolute tolerance, added to it.
        inputs: arrays by input name; None: generated.
        shapes: sizes for inputs with dynamic dimensions, by name.
        seed: of the generated inputs.
        freeze_initializers: of the fold, as for `fold_onnx`.
        lower_batch_statistics: of the fold, as for `fold_onnx`.
        merge_branches: of the fold.
        drop_dead_channels: of the fold.
        input_ranges: of the fold and the check.
        apart: check in a process of its own, as `fold_onnx` does.
        timeout: seconds that the check may take there.
        quantize_for: of the fold, as for `fold_onnx`.
        calibration: samples as for `bnfold.correct` (arrays by input name, or a file of them): the model is
            quantized to int8 as it is and equalized, by onnxruntime, and corrected; it is equalized only if
            that is nearer to float32. One scale a weight, unless quantize_for is "int8".
        others: options of `fold_onnx` that come after this, which are refused by name.

    Returns:
        The model (for a path: an `onnx.ModelProto`), of the kind that was given, and the report.

    Raises:
        ModelError: the model cannot be read. UsageError: a name or an option is unknown.
        VerifyError: the model that comes out does not compute the same.
    """
    refuse_others("equalize_onnx", others, "equalize first; bnfold.fold_onnx does that to the result")
    options = Fold(
        shared=shared,
        skip=skip,
        freeze_initializers=freeze_initializers,
        lower_batch_statistics=lower_batch_statistics,
        merge_branches=merge_branches,
        drop_dead_channels=drop_dead_channels,
        input_ranges=input_ranges,
        quantize_for=quantize_for,
    )
    loaded, as_given = opened(model, "equalize_onnx")
    check = Check(verify, inputs, shapes, seed, rtol, atol, apart, timeout)
    result, report = equalize_loaded(
        loaded, options, check, fold=fold, split_relu6=split_relu6, calibration=calibration
    )
    return as_given(result), report


def equalize_loaded(
    loaded: Loaded,
    options: Fold,
    check: Check,
    *,
    fold: bool = True,
    split_relu6: bool = False,
    calibration: Given | None = None,
    advance: Advance | None = None,
    sketch: Sketch | None = None,
) -> tuple[Loaded, EqualizeReport]:
    """`equalize_onnx` for a model that is loaded; the result is ready to be saved.

    advance: told how far quantizing is. sketch: is shown the model before it is changed.
    """
    target = options.quantize_for or ONE_SCALE
    if calibration is not None and QUANTIZERS[target][0] < BRANCHES_FROM:
        raise UsageError(f"calibration data has nothing to do with {target}: onnxruntime quantizes to int8")
    usual = vars(Fold(shared=options.shared))
    for name, value in vars(options).items():
        if not fold and (value or usual[name]) and value != usual[name]:
            raise UsageError(f"{name} is about the fold of batch norms: without a fold it says nothing")
    report = EqualizeReport()
    check = replace(check, ranges=ranges_in(loaded, options))
    if fold:
        loaded, report.fold = fold_loaded(loaded, options, check, sketch=sketch)
    named = annotated(loaded)
    result = balance(loaded.copy(), split_relu6, options.shared, report, sketch)
    report.notes += dropped_note(named, result)
    if not report.regions:
        report.notes.append(
            "nothing is carried at another size: the model is as it was"
            + " but folded" * bool(report.fold is not None and report.fold.folded)
        )
        return loaded, report
    if check.verify:
        found = compare(loaded, result, check)
        conclude(report, found, "the equalized model does not compute the same")
    if calibration is not None:
        report.trial = tried(loaded, result, target, calibration, advance)
        if report.trial.taken != "equalized":
            report.left()
            return loaded, report
    else:
        report.warn()
    return result, report
