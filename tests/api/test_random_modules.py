"""Random networks through `fold_module` and `fold_program`, held against themselves in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bnfold
from tests.torch_graph.random_modules import exact, network

ROUNDING = 1e-5  # of the output's largest value, in float32


def error(run: Any, module: nn.Module, x: Tensor) -> float:
    wanted = exact(module, x)
    with torch.no_grad():
        return float((run(x.clone()) - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("seed", [0])
def test_random_networks(seed: int) -> None:
    """For the first of them the size of the batch is free."""
    module, x = network(seed)
    free = ({0: torch.export.Dim("images")},) if seed == 0 else None
    inputs = [x, torch.cat([x, x.flip(0)])[:3]] if free else [x]
    allowed = max(ROUNDING, 10 * max(error(module, module, x) for x in inputs))
    folded, report = bnfold.fold_module(module, x, dynamic_shapes=free)
    assert all(error(folded, module, x) < allowed for x in inputs), report
    program, report = bnfold.fold_program(torch.export.export(module, (x,), dynamic_shapes=free))
    assert all(error(program.module(), module, x) < allowed for x in inputs), report
