"""Modules around a module: what runs it on several devices, or compiled, and computes nothing of its own."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bnfold.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["check_kind", "inner_name", "plain_arguments", "plain_module", "unwrapped"]

_INSTEAD = {  # by the name of a class among the bases of what was given
    "ScriptModule": "give the module that it was made of",
    "dict": "make the network, and load that into it with net.load_state_dict()",
    "ExportedProgram": "bnfold.fold_program folds it",
    "ModelProto": "bnfold.fold_onnx folds it",
    "str": "bnfold.fold_onnx folds a file; load a module first",
    "Path": "bnfold.fold_onnx folds a file; load a module first",
    "type": "call the class to make one",
    "function": "call it to make one",
}


def inner_name(module: Any) -> str:
    """The attribute in which DataParallel, DistributedDataParallel or torch.compile keep the module that they
    wrap; "" for any other module.
    """
    from torch import nn

    if "_orig_mod" in getattr(module, "_modules", ()):
        return "_orig_mod"
    return "module" if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)) else ""


def unwrapped(module: Any) -> Any:
    """The module inside all wrappers, in whatever order they are."""
    while name := inner_name(module):
        module = getattr(module, name)
    return module


def plain_module(module: Any, function: str) -> Any:
    """What is inside all wrappers, for a function that needs all of every parameter.

    Raises:
        UsageError: it is no module, or none whose code can be seen; or parameters are spread over processes
            (FSDP, tensor parallel).
    """
    module = unwrapped(module)
    check_kind(module, function)
    if _spread(module):
        raise UsageError(
            f"{function} needs whole parameters, and those of {type(module).__name__} are spread over "
            "processes: gather them (torch.distributed.checkpoint.state_dict.get_model_state_dict, with "
            "full_state_dict=True), and give a network that holds all of them"
        )
    return module


def check_kind(module: Any, function: str) -> None:
    """Refuse what is no module whose code can be seen, with what serves in its place: a UsageError."""
    from torch import nn

    names = [kind.__name__ for kind in type(module).__mro__]
    if not isinstance(module, nn.Module) or "ScriptModule" in names:
        instead = next((f": {words}" for name, words in _INSTEAD.items() if name in names), "")
        raise UsageError(f"{function} takes a torch.nn.Module, not {names[0]}{instead}")


def plain_arguments(module: nn.Module, example_inputs: Any, function: str) -> tuple[Any, ...]:
    """A module's positional arguments: a tuple as it is, anything else as the one that there is.

    Raises:
        UsageError: keyword arguments, or arrays of numpy.
    """
    args = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    parameters = inspect.signature(module.forward).parameters
    if (
        isinstance(example_inputs, Mapping)
        and example_inputs
        and all(key in parameters for key in example_inputs)
    ):
        raise UsageError(
            f"{function} takes example_inputs by position, and those by name as kwargs: "
            f"{function}(module, (), kwargs={{...}})"
        )
    if any(type(value).__module__ == "numpy" for value in args):
        raise UsageError(
            f"{function} takes tensors, not arrays of numpy: torch.from_numpy makes them of these"
        )
    return args


def _spread(module: nn.Module) -> bool:
    # Who has not loaded these packages has nothing of theirs, and loading them takes long.
    tensors, fsdp = map(sys.modules.get, ("torch.distributed.tensor", "torch.distributed.fsdp"))
    dtensor, wrapper = getattr(tensors, "DTensor", ()), getattr(fsdp, "FullyShardedDataParallel", ())
    parts, parameters = module.modules(), module.parameters()
    return any(isinstance(p, dtensor) for p in parameters) or any(isinstance(p, wrapper) for p in parts)
