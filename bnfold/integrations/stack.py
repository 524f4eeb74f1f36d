"""The versions of stacks that bnfold was tested with, and one line where one is absent or does not fit."""

from __future__ import annotations

import importlib
from importlib import metadata
from typing import Any

__all__ = ["TESTED", "imported", "tested"]

# By the name of the distribution; tools/stacks installs exactly these.
TESTED = {
    "torch": "2.13.0",
    "onnxruntime": "1.32.0",
    "torchao": "0.18.0",
    "executorch": "1.5.1",
    "olive-ai": "0.13.0",
    "openvino": "2026.4.1",
    "nncf": "3.4.0",
    "nvidia-modelopt": "0.47.0",
}


def imported(stack: str, module: str, name: str) -> Any:
    """What a module of a stack calls `name`, loaded now.

    Raises:
        ImportError: it is not installed, or has nothing of that name; the message is one line, with the
            version that was tested.
    """
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ImportError(f"bnfold needs {name} of {stack}, {tested(stack)}") from error


def tested(stack: str) -> str:
    """Which version was tested, and which is here, as the end of a sentence."""
    wanted = f"tested with {stack} {TESTED[stack]}"
    try:
        found = metadata.version(stack)
    except metadata.PackageNotFoundError:
        return f"{wanted}; it is not installed: pip install '{stack}=={TESTED[stack]}'"
    return wanted if found.partition("+")[0] == TESTED[stack] else f"{wanted}; {found} is installed"
