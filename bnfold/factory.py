"""A torch module from a name on the command line, `package.module:factory`, and its weights from a file.

The factory is the user's own code: it is imported and called, like any program of theirs. The weights are
data, and nothing in them is run.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bnfold.errors import UsageError

__all__ = ["load_module"]

_WRAPPERS = ("state_dict", "model_state_dict", "model", "network")  # keys under which training scripts save


def load_module(spec: str, weights: Path | None) -> nn.Module:
    """The module that `package.module:factory` makes, in eval mode, with the weights loaded.

    Raises:
        UsageError: there is no such module or factory, it does not make a torch module, or the weights are
            not its own.
    """
    name, colon, attribute = spec.partition(":")
    if not (name and colon and attribute):
        raise UsageError(f"{spec!r} is not the name of a factory, such as package.module:factory")
    sys.path.insert(0, "")
    try:
        factory: Any = importlib.import_module(name)
        for part in attribute.split("."):
            factory = getattr(factory, part)
    except ModuleNotFoundError as error:
        raise UsageError(f"{spec}: no module named {error.name!r} to import") from None
    except AttributeError as error:
        raise UsageError(f"{spec}: {error}") from None
    finally:
        sys.path.remove("")
    module = factory()
    if not isinstance(module, nn.Module):
        raise UsageError(f"{spec} made a {type(module).__name__}, and not a torch.nn.Module")
    if weights is not None:
        _load(module, weights)
    return module.eval()


def _load(module: nn.Module, path: Path) -> None:
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file of weights")
    state: Any
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of any kind: the file is whatever somebody sent
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"{path}: not a file of weights that can be read without running code: {said}"
        ) from None
    for key in _WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping):
        raise UsageError(f"{path}: holds a {type(state).__name__}, and not a state_dict")
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise UsageError(f"{path}: not the weights of this module: {' '.join(str(error).split())}") from None
