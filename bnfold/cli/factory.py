"""A torch module from a name on the command line, `package.module:factory`, and its weights from a file.

The factory is the user's own code: it is imported and called, like any program of theirs; so is an expression
in its place, `package.module:factory(width=2)`. The weights are data, and nothing in them is run.
"""

from __future__ import annotations

import ast
import importlib
import re
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bnfold.errors import UsageError, first_line

__all__ = ["load_module", "value_of"]

_PARALLEL = "module."  # before every name, where DistributedDataParallel was saved whole
_WRAPPERS = ("state_dict", "model_state_dict", "model", "network")  # keys under which training scripts save


def value_of(text: str) -> Any:
    """What an argument of the factory is: the value that Python reads in it (2, True, [1, 2], "a"), else the
    text itself.
    """
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def load_module(spec: str, weights: Path | None, arguments: Mapping[str, Any] | None = None) -> nn.Module:
    """The module that `package.module:factory` makes, in eval mode, with the weights loaded.

    What stands behind the colon may be a Python expression, which is evaluated among the names of the module.
    arguments: of the factory, by name.

    Raises:
        UsageError: there is no such module or factory, it does not make a torch module, or the weights are
            not its own.
    """
    name, colon, attribute = spec.partition(":")
    if not (name and colon and attribute):
        raise UsageError(f"{spec!r} is not the name of a factory, such as package.module:factory")
    sys.path.insert(0, "")
    try:
        made: Any = importlib.import_module(name)
        if re.fullmatch(r"\w+(\.\w+)*", attribute):
            for part in attribute.split("."):
                made = getattr(made, part)
        else:
            made = eval(attribute, vars(made))
        if arguments and isinstance(made, nn.Module):
            raise UsageError(f"{spec} is a module already, which takes no --arg")
        module = made if isinstance(made, nn.Module) else made(**(arguments or {}))
    except UsageError:
        raise
    except ModuleNotFoundError as error:
        raise UsageError(f"{spec}: no module named {error.name!r} to import") from None
    except (Exception, SystemExit) as error:  # of any kind: it is the user's own program
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise UsageError(
            f"{spec}: {type(error).__name__}: {first_line(error)} ({last.filename}, line {last.lineno})"
        ) from None
    finally:
        sys.path.remove("")
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
    while isinstance(state, Mapping):
        inner = next((state[key] for key in _WRAPPERS if isinstance(state.get(key), Mapping)), None)
        if inner is None:
            break
        state = inner
    if not isinstance(state, Mapping):
        raise UsageError(f"{path}: holds a {type(state).__name__}, and not a state_dict")
    names = list(state)
    if names and all(isinstance(name, str) and name.startswith(_PARALLEL) for name in names):
        state = {name.removeprefix(_PARALLEL): value for name, value in state.items()}
    try:
        module.load_state_dict(state)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise UsageError(f"{path}: not the weights of this module: {' '.join(str(error).split())}") from None
