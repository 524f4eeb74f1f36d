"""torch.compile with inductor: the graph that inductor is handed, and what it makes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bnfold.integrations.torch_compile.backend import backend
from tools._peers.left import Left
from tools._peers.torch_left import left, of_module
from tools._stacks.measure import FLOAT, Made, measure


def make(module: nn.Module, x: Tensor, fold: dict[str, Any] | None) -> Made:
    """By bnfold's backend and inductor behind it, or by inductor alone."""
    from torch._inductor.compile_fx import compile_fx

    handed: list[Left] = []

    def inductor(graph: Any, arguments: Any, **_: Any) -> Any:
        handed.append(left(of_module(graph, *arguments)))
        return compile_fx(graph, arguments)

    if fold is not None:
        run: Callable[[Tensor], Any] = torch.compile(module, backend=backend, options={"backend": inductor})
        run(x)
        return Made(handed[0], run)
    return Made(left(of_module(module, x)), torch.compile(module))


if __name__ == "__main__":
    measure(make, FLOAT)
