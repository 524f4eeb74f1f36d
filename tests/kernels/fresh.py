"""Modules of bnfold.kernels as a process finds them that has not used them yet."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType


def fresh(name: str) -> ModuleType:
    """A copy of bnfold.kernels.<name> with empty caches, beside the one that is imported."""
    spec = importlib.import_module(f"bnfold.kernels.{name}").__spec__
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
