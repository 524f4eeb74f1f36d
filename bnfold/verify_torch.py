"""Do two torch modules compute the same? Both run on the same inputs; float64 is the referee."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from bnfold.difference import TOLERANCES, OutputError, Truth, compare
from bnfold.errors import first_line
from bnfold.torch_graph.arrays import dtype_name, to_array
from bnfold.torch_graph.wide import InFloat64, wide
from bnfold.verify import Verification

__all__ = ["exact_outputs", "outputs", "unchanging", "verify_modules"]


def verify_modules(
    original: nn.Module,
    folded: nn.Module,
    args: tuple[Any, ...] | None,
    kwargs: dict[str, Any],
    rtol: float | None,
    atol: float | None,
) -> Verification:
    """Run both on the same arguments and compare what they give; modules in training mode may change.

    Where the error is beyond the tolerance, the original's own rounding is measured against float64,
    and twice of that is allowed.
    """
    kind = _working_type(original)
    usual = TOLERANCES[kind]
    tolerance = usual._replace(
        rtol=usual.rtol if rtol is None else rtol, atol=usual.atol if atol is None else atol
    )
    by = f"torch {torch.__version__}"
    if args is None:
        reason = "the program carries no example inputs: pass inputs=(...)"
        return Verification([], "", "not run", reason, tolerance.rtol, tolerance.atol)
    in_float64 = exact_outputs(original, args, kwargs)
    before = outputs(original, args, kwargs)
    try:
        after = outputs(folded, args, kwargs)
    except Exception as error:  # of any kind: the user's code may ask a batch norm for what nn.Identity lacks
        reason = f"what was folded does not run: {error}"
        return Verification([], by, "failed", reason, tolerance.rtol, tolerance.atol)
    errors = _judge(before, after, tolerance, None)
    notes: list[str] = []
    if not all(error.ok for error in errors):
        try:
            exact = in_float64()
        except Exception as error:  # of any kind: it may write into what is stored, or leave Python
            notes.append(f"whether it is rounding could not be told: {first_line(error)}")
        else:
            errors = _judge(before, after, tolerance, exact)
    status = "passed" if all(error.ok for error in errors) else "failed"
    names = [error.name for error in errors if not error.ok]
    reason = "" if status == "passed" else f"{', '.join(names)} differ{'s' if len(names) == 1 else ''}"
    return Verification(errors, by, status, reason, tolerance.rtol, tolerance.atol, notes)


def _judge(before: list[Any], after: list[Any], tolerance: Any, exact: list[Any] | None) -> list[OutputError]:
    errors: list[OutputError] = []
    for i, (old, new) in enumerate(zip(before, after, strict=True)):
        truth = None if exact is None else Truth(exact[i], old)
        errors += compare(f"output {i}", old, new, tolerance, truth=truth)
    return errors


def outputs(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """All that a module gives, as arrays. It may write into its inputs; drop-out draws the same numbers."""
    args, kwargs = pytree.tree_map(_own, (args, kwargs))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        leaves = pytree.tree_leaves(module(*args, **kwargs))
    return [to_array(leaf) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]


def _own(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, torch.Tensor) else leaf


def unchanging(module: nn.Module) -> nn.Module:
    """The module, or a copy of it if running it would change it: if a part is in training mode."""
    return copy.deepcopy(module) if any(part.training for part in module.modules()) else module


def exact_outputs(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Callable[[], list[Any]]:
    """What `outputs` gives in float64, of the module as it is now: one in training mode may change."""
    now = unchanging(module)

    def run() -> list[Any]:
        with InFloat64():
            return outputs(now, *pytree.tree_map(wide, (args, kwargs)))

    return run


def _working_type(module: nn.Module) -> str:
    """The narrowest floating type that the module stores."""
    found = {dtype_name(value.dtype) for value in (*module.parameters(), *module.buffers())}
    return next((t for t in ("float16", "bfloat16", "float32", "float64") if t in found), "float32")
