"""A module that somebody brings: can it be read, copied, exported? If not, the error says what to do."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn
from torch.export import ExportedProgram
from torch.nn.parameter import is_lazy

from bnfold.errors import UsageError, explained
from bnfold.torch_graph import tracing
from bnfold.torch_graph.tracing import without_warnings

__all__ = ["check_module", "copied", "exported"]

IN_PARTS = (
    "Fold the parts of it that can be exported, each on its own inputs (net.backbone with inplace=True, "
    "say), or rewrite what depends on data"
)
QUANTIZERS = "modelopt.torch.quantization"  # its modules look at numbers before they compute
BEFORE_QUANTIZING = (
    "It is quantized by modelopt: fold before mtq.quantize, or give the ONNX file of the quantized module to "
    "bnfold.fold_onnx, which leaves its integers as they are"
)


def copied(module: nn.Module) -> nn.Module:
    advice = (
        "The older torch.nn.utils.weight_norm leaves such a tensor behind: call the module once under "
        "torch.no_grad(), or use torch.nn.utils.parametrizations"
    )
    with explained(f"{type(module).__name__} cannot be copied", advice):
        made: nn.Module = copy.deepcopy(module)
    return made


def check_module(module: nn.Module) -> None:
    values = [*module.parameters(), *module.buffers()]
    if any(is_lazy(value) for value in values):
        raise UsageError("the module has lazy parameters that hold nothing yet: run it once first")
    if any(value.is_meta for value in values):
        raise UsageError(
            "the module has parameters on the meta device, without values: load its weights first"
        )


def exported(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any
) -> tuple[ExportedProgram, ExportedProgram]:
    """The module's program, and the same without in-place operators."""
    quantized = any(type(part).__module__.startswith(QUANTIZERS) for part in module.modules())
    advice = BEFORE_QUANTIZING if quantized else IN_PARTS
    said = f"torch.export cannot see the whole of {type(module).__name__}"
    with tracing.told(module, args, kwargs, said, advice), without_warnings():
        raw = tracing.exported(module, args, kwargs, dynamic_shapes)
        functional = raw.run_decompositions({})
    return raw, functional
