"""A module run in float64 without a copy of it: each call widens its own arguments, and lets them go."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

__all__ = ["InFloat64", "to_float64"]

_NARROW = (torch.float32, torch.float16, torch.bfloat16)
_ROUNDING = (torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16)  # name a type by being called


def to_float64(leaf: Any) -> Any:
    """A floating point tensor in float64, or that type instead of another one; all else as it is."""
    if isinstance(leaf, torch.Tensor) and leaf.dtype in _NARROW:
        return leaf.double()
    return torch.float64 if isinstance(leaf, torch.dtype) and leaf in _NARROW else leaf


class InFloat64(TorchFunctionMode):
    """While it is entered, every call from Python computes in float64, whatever type it names or is given.

    Parameters and buffers stay as they are; what comes out of a call is float64.

    Raises (from a call):
        TypeError: it writes into a tensor that is not float64, such as a buffer.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if getattr(func, "__name__", "") == "__get__":  # shape, dtype, ...: no reason to widen the tensor
            found = func(*args)
            return found if isinstance(found, torch.Tensor) else to_float64(found)
        if func in _ROUNDING:
            return to_float64(args[0])
        given = dict(kwargs or {})
        target = given.get("out", args[0] if args and _writes(func) else None)
        if isinstance(target, torch.Tensor) and target.dtype in _NARROW:
            raise TypeError(f"{getattr(func, '__name__', func)} writes into a stored tensor")
        exact, named = pytree.tree_map(to_float64, (tuple(args), given))
        return pytree.tree_map(to_float64, func(*exact, **named))


def _writes(func: Any) -> bool:
    """The call changes its first argument."""
    schema = getattr(func, "_schema", None)
    if schema is not None:
        alias = schema.arguments[0].alias_info if schema.arguments else None
        return alias is not None and bool(alias.is_write)
    name = getattr(func, "__name__", "")
    special = name.startswith("__")
    return name.startswith(("__i", "__set")) if special else name.endswith("_")
