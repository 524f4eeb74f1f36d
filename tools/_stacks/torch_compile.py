"""torch.compile with inductor: the graph that inductor is handed, and what it makes of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._inductor import config
from torch._inductor.compile_fx import compile_fx

from bnfold.integrations.torch_compile.backend import backend
from tools._peers.left import Left
from tools._peers.torch_left import left, of_module
from tools._stacks.measure import COMPILED, FLOAT, SHARED, Made, measure

BESIDE_FREEZING = ("resnet50", "levit_128s", "repvgg_a0", "mobileone_s0")


def make(module: nn.Module, x: Tensor, fold: dict[str, Any] | None) -> Made:
    """By bnfold's backend and inductor behind it, or by inductor alone; with its freezing or without."""
    how = {"bnfold": fold is not None, "freeze": False} | (fold or {})
    patches = {"freezing": how["freeze"]}
    handed: list[Left] = []

    def inductor(graph: Any, arguments: Any, **_: Any) -> Any:
        if how["bnfold"]:
            handed.append(left(of_module(graph, *arguments)))
        return compile_fx(graph, arguments, config_patches=patches)

    # Each way has an `inductor` of its own: torch.compile takes nothing that another backend compiled.
    if how["bnfold"]:
        run: Callable[[Tensor], Any] = torch.compile(module, backend=backend, options={"backend": inductor})
        run(x)
        return Made(handed[0], run)
    # Freezing alone is a setting of the process, which torch.compile reads when it captures, and at no call.
    with config.patch(patches):
        run = torch.compile(module, backend=inductor)
        run(x)
    return Made(left(of_module(module, x)), run)


if __name__ == "__main__":
    # A kernel that was compiled for one way is there for the others; none is left of another run.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(SHARED / "inductor")
    measure(make, COMPILED if sys.argv[1] in BESIDE_FREEZING else FLOAT)
