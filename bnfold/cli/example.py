"""Inputs to export a module with: random ones, of the shapes and types that the command line gives."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from bnfold.cli.shapes import Given
from bnfold.errors import UsageError
from bnfold.onnx_graph.run.input_ranges import inside

__all__ = ["Example", "example"]

BATCH, OTHER = 2, 64  # an open size in the example: on the first axis, and on any other
_ORDERED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_NAMED = (*_ORDERED, inspect.Parameter.KEYWORD_ONLY)


class Example(NamedTuple):
    """What a module is called with. dynamic_shapes: as `bnfold.export` takes them; None: no size is open.
    names: of the file's inputs, as far as they are not those of the parameters of `forward`.
    """

    args: tuple[torch.Tensor, ...]
    kwargs: dict[str, torch.Tensor]
    dynamic_shapes: Any
    names: list[str]


def example(
    module: nn.Module,
    inputs: Sequence[Given],
    ranges: Mapping[str, tuple[float, float]],
    names: Sequence[str] = (),
) -> Example:
    """Normally distributed numbers, or 0 and 1 for integers and booleans; 0 to 255 for bytes.

    Args:
        module: what is called.
        inputs: one that has the name of a parameter of `forward` is that one; the others are the parameters
            in their order, and their names, if they have any, are those of the file's inputs.
        ranges: that inputs keep to, by name.
        names: of the file's inputs, in the file's order; they come before what `inputs` say.

    Raises:
        UsageError: two inputs are for one parameter, or `forward` has no place for one.
    """
    signature = inspect.signature(module.forward).parameters
    parameters = [name for name, one in signature.items() if one.kind in _NAMED]
    rest = next((name for name, one in signature.items() if one.kind is one.VAR_POSITIONAL), "")
    bound: dict[str, Given] = {}
    more: list[Given] = []
    for at, one in enumerate(inputs):
        name = one.name if one.name in parameters else parameters[at] if at < len(parameters) else ""
        if name in bound:
            raise UsageError(f"two inputs are for the parameter {name!r} of {type(module).__name__}.forward")
        if name:
            bound[name] = one
        elif rest:
            more.append(one)
        else:
            takes = ", ".join(parameters) or "nothing"
            raise UsageError(
                f"{type(module).__name__}.forward takes {takes}, and {len(inputs)} inputs are given"
            )
    order = [name for name in parameters if name in bound]
    given = [*(bound[name] for name in order), *more]
    own = [*order, *(f"{rest}_{at}" for at in range(len(more)))]
    called = [one.name or name for one, name in zip(given, own, strict=True)]
    called = [*names, *called[len(names) :]]
    examples: dict[str, int] = {}
    tensors = []
    for one, name, label in zip(given, own, called, strict=False):
        limits = ranges.get(label, ranges.get(name))
        tensors.append(_tensor(module, one, examples, limits))
    ahead = 0  # how many parameters are given by their position
    while ahead < len(order) and parameters[ahead] == order[ahead] and _is_ordered(signature[order[ahead]]):
        ahead += 1
    args = (*tensors[:ahead], *tensors[len(order) :])
    return Example(
        args,
        dict(zip(order[ahead:], tensors[ahead : len(order)], strict=True)),
        _open_sizes(order, bound, rest, more),
        called if called != own else [],
    )


def _is_ordered(parameter: inspect.Parameter) -> bool:
    return parameter.kind in _ORDERED


def _open_sizes(order: Sequence[str], bound: Mapping[str, Given], rest: str, more: Sequence[Given]) -> Any:
    named = {name: _axes(bound[name]) for name in order}
    others = tuple(map(_axes, more))
    if not any((*named.values(), *others)):
        return None
    return {**named, **({rest: others} if more else {})}


def _axes(one: Given) -> dict[int, str]:
    return {axis: size.name for axis, size in enumerate(one.sizes) if size.name}


def _tensor(
    module: nn.Module, one: Given, examples: dict[str, int], limits: tuple[float, float] | None
) -> torch.Tensor:
    """Sizes of one name are the same; `examples` remembers them."""
    shape = []
    for axis, size in enumerate(one.sizes):
        value = size.value or examples.get(size.name) or (OTHER if axis else BATCH)
        if size.name and examples.setdefault(size.name, value) != value:
            raise UsageError(
                f"the size {size.name!r} is {examples[size.name]} in one input and {value} in another"
            )
        shape.append(value)
    kind = getattr(torch, one.dtype) if one.dtype else _working_type(module)
    if kind.is_floating_point:
        made = torch.randn(*shape)
    else:
        made = torch.randint(0, 256 if kind == torch.uint8 else 2, shape)
    if limits is not None:
        low, high = (np.asarray(end, np.float64) for end in limits)
        made = torch.from_numpy(inside({"": made.numpy()}, {"": (low, high)})[""])
    return made.to(kind)


def _working_type(module: nn.Module) -> torch.dtype:
    floats = (weight.dtype for weight in module.parameters() if weight.is_floating_point())
    return next(floats, torch.float32)
