"""Train with batch norm, deploy without it.

    # a path, an onnx.ModelProto or an onnx_ir.Model; the input is not changed
    folded, report = bnfold.fold_onnx(model)
    print(report)  # for each batch norm: folded into what, or kept, and why

    # what torch.export.export gives
    folded, report = bnfold.fold_program(program)

Public names load when they are first used, so that `import bnfold` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bnfold import compress as compress
    from bnfold import nn as nn
    from bnfold import tensorrt as tensorrt
    from bnfold.api.correct import correct as correct
    from bnfold.api.equalize import equalize_onnx as equalize_onnx
    from bnfold.api.export import export as export
    from bnfold.api.fold_module import fold_module as fold_module
    from bnfold.api.fold_onnx import fold_onnx as fold_onnx
    from bnfold.api.fold_program import fold_program as fold_program
    from bnfold.api.prove import prove as prove
    from bnfold.errors import BnfoldError as BnfoldError
    from bnfold.errors import ModelError as ModelError
    from bnfold.errors import UsageError as UsageError
    from bnfold.errors import VerifyError as VerifyError
    from bnfold.report.fold import Entry as Entry
    from bnfold.report.fold import Report as Report

__version__ = "0.2.0"

_HOME = {
    "fold_onnx": "bnfold.api.fold_onnx",
    "correct": "bnfold.api.correct",
    "equalize_onnx": "bnfold.api.equalize",
    "export": "bnfold.api.export",
    "fold_module": "bnfold.api.fold_module",
    "fold_program": "bnfold.api.fold_program",
    "prove": "bnfold.api.prove",
    "nn": "bnfold.nn",
    "compress": "bnfold.compress",
    "tensorrt": "bnfold.tensorrt",
    "Report": "bnfold.report.fold",
    "Entry": "bnfold.report.fold",
    "BnfoldError": "bnfold.errors",
    "ModelError": "bnfold.errors",
    "UsageError": "bnfold.errors",
    "VerifyError": "bnfold.errors",
}

__all__ = [
    "correct",
    "equalize_onnx",
    "export",
    "fold_onnx",
    "fold_module",
    "fold_program",
    "prove",
    "nn",
    "compress",
    "tensorrt",
    "Report",
    "Entry",
    "BnfoldError",
    "ModelError",
    "UsageError",
    "VerifyError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'bnfold' has no attribute {name!r}")
    try:
        home = importlib.import_module(_HOME[name])
        value = globals()[name] = home if _HOME[name] == f"bnfold.{name}" else getattr(home, name)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        from bnfold.origin import extra

        raise ImportError(f"bnfold.{name} needs torch: {extra('torch')}") from None
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
