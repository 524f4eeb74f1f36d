"""For onnxruntime's quantizer: the step in front of it, with the fold."""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnfold.api.fold_onnx import fold_loaded, opened
from bnfold.errors import ModelError
from bnfold.integrations.stack import imported
from bnfold.onnx_graph.file.loaded import Loaded
from bnfold.onnx_graph.file.save import save
from bnfold.options import Check, Fold
from bnfold.report.fold import Report

if TYPE_CHECKING:
    import onnx
    import onnx_ir
    from torch.onnx import ONNXProgram

__all__ = ["quant_pre_process"]


def quant_pre_process(
    input_model: str | Path | onnx.ModelProto | onnx_ir.Model | ONNXProgram,
    output_model_path: str | Path,
    *,
    quantize_for: str | None = "int8",
    skip: Collection[str] = (),
    verify: bool = True,
    **options: Any,
) -> Report:
    """Fold, then `onnxruntime.quantization.quant_pre_process`: call this one in its place.

    onnxruntime infers shapes of the folded model and optimizes it; what is written is ready for
    `quantize_static`.

    Args:
        input_model: what `fold_onnx` takes; it is not changed.
        output_model_path: the file to write; one that is there is replaced.
        quantize_for: as for `fold_onnx`: what the model will be rounded to, which decides what is merged.
            For `quantize_static(per_channel=False)`: "int8-per-tensor". None: all that runs faster in float.
        skip: names of batch norms to leave alone.
        verify: check the fold, as `fold_onnx` does. Of what onnxruntime does afterwards nothing is checked.
        options: of onnxruntime's own function.

    Returns:
        The report of the fold.

    Raises:
        ImportError: no onnxruntime, or one without this function; it says which version was tested.
        ModelError, UsageError, VerifyError: as `fold_onnx`; nothing is written then.
    """
    of_onnxruntime = imported("onnxruntime", "onnxruntime.quantization.shape_inference", "quant_pre_process")
    loaded, _ = opened(input_model, "quant_pre_process")
    folded, report = fold_loaded(loaded, Fold(quantize_for=quantize_for, skip=skip), Check(verify))
    with tempfile.TemporaryDirectory(prefix="bnfold-") as folder:
        of_onnxruntime(str(_written(folded, Path(folder))), str(output_model_path), **options)
    return report


def _written(model: Loaded, folder: Path) -> Path:
    """One file if it can be: onnxruntime does not always look for data files beside the model."""
    path = folder / "folded.onnx"
    try:
        save(model, path, external=False)
    except ModelError:  # over 2 GiB
        save(model, path, external=True)
    return path
