"""Weight ranges of a model balanced for int8, exactly: read, choose, write, verify."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnfold.api.fold_onnx import SHARED, check_options, fold_loaded
from bnfold.errors import UsageError, VerifyError
from bnfold.report.equalize import EqualizeReport

if TYPE_CHECKING:
    from bnfold.onnx_graph.file.loaded import Loaded

__all__ = ["SHARED", "equalize_file", "equalize_onnx"]


def equalize_onnx(
    model: Any,
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
) -> tuple[Any, EqualizeReport]:
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

    Returns:
        The model (for a path: an `onnx.ModelProto`), of the kind that was given, and the report.

    Raises:
        ModelError: the model cannot be read. UsageError: a name or an option is unknown.
        VerifyError: the model that comes out does not compute the same.
    """
    from bnfold.onnx_graph.file.loaded import load

    wrap = None
    if hasattr(model, "graph") and not hasattr(model, "SerializeToString"):
        import onnx_ir

        if not isinstance(model, onnx_ir.Model):
            kind = type(model).__name__
            raise UsageError(
                f"equalize_onnx takes a path, an onnx.ModelProto or an onnx_ir.Model, not {kind}"
            )
        wrap = onnx_ir.from_proto
        model = onnx_ir.to_proto(model)
    check = {"rtol": rtol, "atol": atol, "inputs": inputs, "shapes": shapes, "seed": seed}
    result, report = _equalized(load(model), fold, split_relu6, verify, shared, skip, check)
    proto = result.to_proto()
    return (wrap(proto) if wrap is not None else proto), report


def equalize_file(
    path: str | Path,
    *,
    fold: bool = True,
    split_relu6: bool = False,
    verify: bool = True,
    shared: str = "duplicate",
    skip: Collection[str] = (),
    **check: Any,
) -> tuple[Loaded, EqualizeReport]:
    """`equalize_onnx` for a file; the result is ready to be saved."""
    from bnfold.onnx_graph.file.loaded import load

    return _equalized(load(path), fold, split_relu6, verify, shared, skip, check)


def _equalized(
    loaded: Loaded,
    fold: bool,
    split_relu6: bool,
    verify: bool,
    shared: str,
    skip: Collection[str],
    check: Mapping[str, Any],
) -> tuple[Loaded, EqualizeReport]:
    from bnfold.passes.equalize import balance

    check_options(shared, skip)
    if skip and not fold:
        raise UsageError("skip names batch norms that the fold leaves alone: without a fold it says nothing")
    report = EqualizeReport()
    if fold:
        loaded, report.fold = fold_loaded(loaded, verify=verify, shared=shared, skip=skip, **check)
    result = balance(loaded.copy(), split_relu6, shared, report)
    if not report.regions:
        report.notes.append(
            "nothing is carried at another size: the model is as it was"
            + " but folded" * bool(report.fold is not None and report.fold.folded)
        )
        return loaded, report
    if verify:
        from bnfold.verify import models as verifier

        report.verification = verifier.verify(loaded, result, **check)
        if report.verification.status == "not run":
            report.notes.append(f"not verified: {report.verification.reason}")
        if report.verification.status == "failed":
            raise VerifyError(f"the equalized model does not compute the same\n{report.verification}")
    return result, report
