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
from bnfold.report.table import counted, first

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
        raise UsageError(_no_factory(spec))
    if name.endswith(".py"):
        meant = name.removesuffix(".py").strip("./").replace("/", ".")
        raise UsageError(f"{spec}: name the module, not its file: {meant}:{attribute}")
    sys.path.insert(0, "")
    try:
        made: Any = importlib.import_module(name)
        if re.fullmatch(r"\w+(\.\w+)*", attribute):
            for part in attribute.split("."):
                if not hasattr(made, part):
                    raise UsageError(f"{name} has no {part!r}. Note: it has {_factories(made)}")
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
    except Exception:  # of any kind: the file is whatever somebody sent
        raise UsageError(
            f"{path}: not a file of weights that can be read without running code: write one by "
            "torch.save(net.state_dict(), path), or by safetensors"
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
        said = _differs(module, state) or " ".join(str(error).split())
        raise UsageError(
            f"{path}: not the weights of this module: {said}; give the factory the arguments that they were "
            "trained with (--arg NAME=VALUE)"
        ) from None


def _no_factory(spec: str) -> str:
    """What to do with something that is no factory's name, by what it is."""
    suffix = Path(spec).suffix
    if suffix == ".onnx":
        return f"{spec} is an ONNX file already: bnfold fold {spec} folded.onnx"
    if suffix in (".pt", ".pth", ".ckpt", ".bin", ".safetensors"):
        return (
            f"{spec} has weights, and the module comes from code: bnfold export MODULE:FACTORY out.onnx "
            f"--weights {spec} --input 1,3,224,224"
        )
    return f"{spec!r} is not the name of a factory, such as package.module:factory"


def _factories(made: Any) -> str:
    """What in a module of Python could be meant, those that it defines itself."""
    names = [
        name
        for name, value in vars(made).items()
        if callable(value) and getattr(value, "__module__", "") == getattr(made, "__name__", None)
    ]
    return first(names, 8) or "nothing to call"


def _differs(module: nn.Module, state: Mapping[str, Any]) -> str:
    """By names and sizes."""
    own = module.state_dict()
    parts = [
        (list(own.keys() - state.keys()), "missing"),
        (list(state.keys() - own.keys()), "not of the module"),
        (
            [name for name in own.keys() & state.keys() if _size(own[name]) != _size(state[name])],
            "of other sizes",
        ),
    ]
    told = [
        f"{counted(len(names), 'value')} {what} ({first(sorted(names), 3)})" for names, what in parts if names
    ]
    return ", ".join(told)


def _size(value: Any) -> list[int]:
    return list(getattr(value, "shape", ()))
