"""Do two torch modules compute the same? Both run on the same inputs; float64 is the referee."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from bnfold.errors import first_line
from bnfold.options import Check
from bnfold.report.verification import OutputError, Verification
from bnfold.torch_graph.arrays import dtype_name, to_array
from bnfold.torch_graph.module.float64 import InFloat64, to_float64
from bnfold.verify.difference import SEEDS, Truth, compare, excuse_by, tolerance_of

__all__ = ["near", "outputs", "verdict", "verify_modules"]


def verify_modules(
    original: nn.Module,
    folded: nn.Module,
    args: tuple[Any, ...] | None,
    kwargs: dict[str, Any],
    check: Check = Check(),  # noqa: B008  (frozen)
) -> Verification:
    """Run both on the same arguments and compare what they give; modules in training mode may change.

    Where the error is beyond the usual tolerance, the original's own rounding is measured against float64,
    and twice of that is allowed; the arguments and two others near to them decide.
    """
    tolerance = tolerance_of(_working_type(original), check)
    by = f"torch {torch.__version__}"
    if args is None:
        reason = "the program carries no example inputs: pass inputs=(...)"
        return Verification([], "", "not run", reason, tolerance.rtol, tolerance.atol)
    before = outputs(original, args, kwargs)
    try:
        after = outputs(folded, args, kwargs)
    except Exception as error:  # of any kind: the user's code may ask a batch norm for what nn.Identity lacks
        reason = f"what was folded does not run: {error}"
        return Verification([], by, "failed", reason, tolerance.rtol, tolerance.atol)
    errors: list[OutputError] = []
    for name, (old, new) in _named(before, after).items():
        errors += compare(name, old, new, tolerance)
    notes: list[str] = []
    excuse_by(errors, tolerance, _draws(original, folded, args, kwargs, notes))
    status, reason = verdict(errors)
    return Verification(errors, by, status, reason, tolerance.rtol, tolerance.atol, notes)


def verdict(errors: list[OutputError]) -> tuple[str, str]:
    """Status and reason."""
    names = [error.name for error in errors if not error.ok]
    if names:
        return "failed", f"{', '.join(names)} differ{'s' if len(names) == 1 else ''}"
    if errors and all(error.note == "no finite value" for error in errors):
        return "not run", "no output has a finite value"
    return "passed", ""


def _named(*each: list[Any]) -> dict[str, tuple[Any, ...]]:
    """What several models give, by output."""
    return {f"output {i}": values for i, values in enumerate(zip(*each, strict=True))}


def _draws(
    original: nn.Module, folded: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], notes: list[str]
) -> Iterator[Mapping[str, tuple[Any, Truth]]]:
    """What both give on the arguments, and on others near to them."""
    for more in range(SEEDS):
        try:
            if (these := near((args, kwargs), more)) is None:
                return
            old, new = outputs(original, *these), outputs(folded, *these)
            exact = outputs(original, these[0], these[1], exact=True)
        except Exception as error:  # of any kind: it may write into what is stored, or leave Python
            if not more:
                notes.append(f"whether it is rounding could not be told: {first_line(error)}")
            return
        yield {name: (y, Truth(z, x)) for name, (x, y, z) in _named(old, new, exact).items()}


def near(inputs: Any, more: int) -> Any:
    """Arguments with all floating point numbers a little smaller, so that everything is rounded anew.

    None if there are no such numbers. more: 1, 2, ...; with 0 they are as they were. (`run.inputs.near` does
    it for arrays.)
    """
    if not more:
        return inputs
    if not any(map(_is_float, pytree.tree_leaves(inputs))):
        return None
    scale = 1 - more / 77
    return pytree.tree_map(lambda leaf: leaf.detach() * scale if _is_float(leaf) else leaf, inputs)


def _is_float(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and (leaf.is_floating_point() or leaf.is_complex())


def outputs(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], exact: bool = False
) -> list[Any]:
    """All that a module gives, as arrays; `exact`: in float64. Its buffers and its inputs are as before
    afterwards, whatever it writes into them, and drop-out draws the same numbers each time.
    """
    args, kwargs = pytree.tree_map(lambda leaf: _own(to_float64(leaf) if exact else leaf), (args, kwargs))
    with torch.no_grad(), torch.random.fork_rng(devices=[]), _buffers_kept(module):
        torch.manual_seed(0)
        with InFloat64() if exact else nullcontext():
            made = module(*args, **kwargs)
        leaves = pytree.tree_leaves(made)
        return [to_array(leaf) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]


def _own(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, torch.Tensor) else leaf


@contextmanager
def _buffers_kept(module: nn.Module) -> Iterator[None]:
    held = [(part, dict(part._buffers)) for part in module.modules()]
    values = {id(b): (b, b.clone()) for _, own in held for b in own.values() if b is not None}
    try:
        yield
    finally:
        for part, own in held:
            part._buffers.update(own)
        for buffer, value in values.values():
            buffer.copy_(value)


def _working_type(module: nn.Module) -> str:
    """The narrowest floating type of its parameters; of its buffers, if it has none."""
    found = {dtype_name(value.dtype) for value in module.parameters()}
    found = found or {dtype_name(value.dtype) for value in module.buffers()}
    return next((t for t in ("float16", "bfloat16", "float32", "float64") if t in found), "float32")
