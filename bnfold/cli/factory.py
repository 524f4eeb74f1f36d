"""A torch module from a name on the command line, `package.module:factory`, its weights from a file, and
inputs to run it with.

The factory is the user's own code: it is imported and called, like any program of theirs. The weights are
data, and nothing in them is run.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bnfold.errors import UsageError, first_line
from bnfold.onnx_graph.run.input_ranges import inside

__all__ = ["load_module", "random_inputs"]

_PARALLEL = "module."  # before every name, where DistributedDataParallel was saved whole
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
        made: Any = importlib.import_module(name)
        for part in attribute.split("."):
            made = getattr(made, part)
        module = made if isinstance(made, nn.Module) else made()
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


def random_inputs(
    module: nn.Module,
    shapes: Sequence[Sequence[int]],
    ranges: Mapping[str, tuple[float, float]],
    names: Sequence[str] = (),
) -> tuple[torch.Tensor, ...]:
    """Normally distributed numbers of these shapes; those for which a range is given keep to it.

    names: of the first inputs; the others have those of the parameters of `forward`.
    """
    inputs = [torch.randn(*shape) for shape in shapes]
    names = [*names, *list(inspect.signature(module.forward).parameters)[len(names) :]]
    for i, name in zip(range(len(inputs)), names, strict=False):
        if name in ranges:
            low, high = (np.asarray(end, np.float64) for end in ranges[name])
            inputs[i] = torch.from_numpy(inside({name: inputs[i].numpy()}, {name: (low, high)})[name])
    return tuple(inputs)
