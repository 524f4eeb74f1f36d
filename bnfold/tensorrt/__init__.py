"""Deployment with TensorRT: the plugin library, and engines. Names load when they are first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bnfold.tensorrt.plugin import load_plugin as load_plugin

_HOME = {"load_plugin": "bnfold.tensorrt.plugin"}

__all__ = ["load_plugin"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'bnfold.tensorrt' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_HOME[name]), name)
    return value
