"""torch.export, tried in both of its ways, and without its warnings of its own future and of packages that
are not installed.
"""

from __future__ import annotations

import copy
import io
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config as symbols
from torch.utils import _pytree as pytree

from bnfold.errors import UsageError, first_paragraph

__all__ = ["exported", "told", "without_warnings"]

# Where torch logs what it also raises, or what does not concern the user.
_LOGS = tuple(
    f"torch.{name}" for name in ("onnx", "export", "fx.experimental.symbolic_shapes", "_dynamo", "_guards")
)


def _any_size(free: bool = True) -> Any:
    """Whether sizes that are 1 in the example may be free."""
    return symbols.patch(backed_size_oblivious=free)  # type: ignore[attr-defined]


@contextmanager
def without_warnings() -> Iterator[None]:
    """They are not for the user of this package: what goes wrong comes as an exception.

    A size that is 1 in the example stays as free as any other, as in torch.onnx.export.
    """
    logs = [logging.getLogger(name) for name in _LOGS]
    levels = [log.level for log in logs]
    with warnings.catch_warnings(), _any_size():
        for kind in (FutureWarning, DeprecationWarning):
            warnings.simplefilter("ignore", kind)
        for log in logs:
            log.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for log, level in zip(logs, levels, strict=True):
                log.setLevel(level)


@contextmanager
def told(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], said: str, advice: str
) -> Iterator[None]:
    """Tracing of a module; what it raises is told with what failed, and advice. Where the module itself does
    not run on these arguments, that is what is told.
    """
    try:
        yield
    except UsageError:
        raise
    except Exception as error:  # of any kind: this is all of torch's tracing on the user's code
        fault = _fault(module, args, kwargs)
        if fault is not None:
            said = f"{type(module).__name__} does not run on these inputs"
            advice = "Give it inputs of the types and sizes that it takes"
        reason = first_paragraph(fault or error)
        if "Suggested fixes:" not in reason:  # else torch advises itself
            reason += f"\n{advice}"
        raise UsageError(f"{said}: {reason}") from error


def _fault(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Exception | None:
    """What a copy of the module raises when it is called."""
    try:
        again = copy.deepcopy(module)
    except Exception:  # of any kind: it is the user's code
        return None
    try:
        with torch.no_grad():
            again(*args, **kwargs)
    except Exception as error:
        return error
    return None


def exported(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    dynamic_shapes: Any,
    asserted: bool = False,
) -> ExportedProgram:
    """The module's program; call it `without_warnings`.

    First its code runs on tensors without numbers. Where that fails, its bytecode is read (strict=True),
    which follows a number out of a tensor: the longest of many lengths, which a mask is made of. Last, a free
    size may be any but 1, as in torch.export itself: some of torch's layers ask that of what is expanded.

    Args:
        module: what to trace.
        args: its positional arguments.
        kwargs: its keyword arguments.
        dynamic_shapes: as for `torch.export.export`, or with names instead of sizes: {0: "batch"}.
        asserted: where it cannot be exported otherwise, what sizes must fulfil (to be even, say) may become
            assertions in the program.

    Raises:
        Exception: what torch raised at the first of all tries.
    """
    shapes = pytree.tree_map(lambda leaf: Dim.DYNAMIC if isinstance(leaf, str) else leaf, dynamic_shapes)
    asserts = {"prefer_deferred_runtime_asserts_over_guards": True} if asserted else {}
    tries: list[tuple[bool, dict[str, Any]]] = [
        (True, {"strict": False}),
        (True, {"strict": True, **asserts}),
    ]
    if dynamic_shapes is not None:
        tries.append((False, {"strict": False}))
        if asserts:
            tries.insert(1, (True, {"strict": False, **asserts}))
    problems: list[Exception] = []
    for any_size, how in tries:
        said = io.StringIO()
        try:
            with redirect_stderr(said), _any_size(any_size):  # torch prints the graph of a try that fails
                program = torch.export.export(module, args, kwargs, dynamic_shapes=shapes, **how)
        except Exception as error:  # of any kind: this is all of torch's tracing on the user's code
            problems.append(error)
        else:
            print(said.getvalue(), end="", file=sys.stderr)
            return program
    raise problems[0]
