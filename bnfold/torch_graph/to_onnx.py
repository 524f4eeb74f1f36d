"""torch's own exporter to ONNX, put right where a fold depends on it.

1. Without its optimizer, which folds what is not frozen, too.
2. A batch norm in training mode uses the statistics of each batch; the exporter would write the running ones.
3. Layers have the names of their modules, which the ledger tells and `skip` takes.
"""

from __future__ import annotations

import ast
import gc
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from bnfold.errors import UsageError, first_line
from bnfold.torch_graph.tracing import without_warnings

__all__ = ["write"]

_LAYERS = frozenset({"BatchNormalization", "Conv", "ConvTranspose", "Gemm", "MatMul"})
_SCOPES = "pkg.torch.onnx.name_scopes"


def write(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    path: Path,
    dynamic_shapes: Any = None,
    opset: int | None = None,
) -> int:
    """Export a module to a file with its weights beside it.

    Returns:
        How many batch norms use the statistics of each batch.

    Raises:
        UsageError: torch cannot export it.
    """
    try:
        with without_warnings():
            exported = torch.export.export(module, args, kwargs, dynamic_shapes=dynamic_shapes)
            count = _own_statistics(exported)
            program = torch.onnx.export(
                exported, dynamo=True, optimize=False, verbose=False, opset_version=opset
            )
            assert program is not None
            _name(program.model)
            program.save(path, external_data=True)
            written = program.model.opset_imports.get("", 0)
    except Exception as error:  # of any kind: this is all of torch's tracing on the user's code
        said = f"torch cannot export {type(module).__name__} to ONNX: {first_line(error.__cause__ or error)}"
        raise UsageError(said) from error
    if opset not in (None, written):
        raise UsageError(
            f"torch's exporter wrote {type(module).__name__} in opset {written}, for it cannot in {opset}: "
            "leave opset out, or take another"
        )
    del exported, program
    gc.collect()  # the exporter's graphs refer to themselves, and hold the weights
    return count


def _own_statistics(program: ExportedProgram) -> int:
    """Take the running statistics from batch norms that do not use them."""
    count = 0
    for node in program.graph.nodes:
        if node.target is torch.ops.aten.batch_norm.default and node.args[5]:
            node.update_arg(3, None)
            node.update_arg(4, None)
            count += 1
    program.graph_module.recompile()
    return count


def _name(model: Any) -> None:
    """Give layers the names of their modules; where a module makes several, the first has it."""
    taken = {node.name for node in model.graph}
    for node in model.graph:
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
        if node.op_type in _LAYERS and len(scopes) > 1 and scopes[-2] and scopes[-2] not in taken:
            taken.add(scopes[-2])
            node.name = scopes[-2]
