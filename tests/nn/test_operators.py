"""The operators that torch.compile sees, by torch's own check of schema, fake tensors and derivative."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from bnfold.nn import kernel_calls, operators
from bnfold.nn.arguments import Arguments, Running

CASES: dict[str, dict[str, Any]] = {
    "all": {},
    "no residual": {"residual": False},
    "no activation": {"relu": False},
    "channels last": {"last": True},
    "no parameters": {"affine": False},
    "no running statistics": {"running": False},
    "float64": {"kind": torch.float64},
    "bfloat16": {"kind": torch.bfloat16},
}


class Given:
    def __init__(
        self,
        residual: bool = True,
        relu: bool = True,
        last: bool = False,
        affine: bool = True,
        running: bool = True,
        kind: torch.dtype = torch.float32,
    ) -> None:
        torch.manual_seed(0)
        wide = torch.float64 if kind == torch.float64 else torch.float32
        x = torch.randn(4, 6, 3, 5, dtype=kind)
        self.x = (x.contiguous(memory_format=torch.channels_last) if last else x).requires_grad_()
        self.residual = torch.randn_like(self.x).requires_grad_() if residual else None
        self.parameters = tuple(
            torch.rand(6, dtype=wide, requires_grad=True) if affine else None for _ in "ab"
        )
        self.statistics = (torch.zeros(6, dtype=wide), torch.ones(6, dtype=wide))
        self.running = (*self.statistics, torch.tensor(0)) if running else (None,) * 3
        self.relu = relu


def passes(operator: Any, *arguments: Any) -> None:
    assert set(torch.library.opcheck(operator.default, arguments).values()) == {"SUCCESS"}


@pytest.mark.parametrize("case", CASES)
def test_training(case: str) -> None:
    given = Given(**CASES[case])
    arguments = (given.x, given.residual, *given.parameters, *given.running)
    passes(torch.ops.bnfold.batch_norm_train, *arguments, 1e-5, 0.1, given.relu)


@pytest.mark.parametrize("case", CASES)
def test_evaluation(case: str) -> None:
    given = Given(**CASES[case])
    arguments = (given.x, given.residual, *given.parameters, *given.statistics)
    passes(torch.ops.bnfold.batch_norm_evaluate, *arguments, 1e-5, given.relu)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("frozen", [True, False])
def test_backward(case: str, frozen: bool) -> None:
    given = Given(**CASES[case])
    noted = given.relu and given.residual is not None
    size = kernel_calls.mask_bytes(given.x) if noted else 0
    mask = torch.randint(0, 15, (size,), dtype=torch.uint8)
    parameters = [None if each is None else each.detach() for each in given.parameters]
    arguments: tuple[Tensor | None, ...] = (given.x.detach(), torch.randn_like(given.x).detach(), mask)
    arguments += (*parameters, *given.statistics)
    passes(torch.ops.bnfold.batch_norm_backward, *arguments, given.relu, frozen, noted)


@pytest.mark.usefixtures("world_of_one")
@pytest.mark.parametrize("case", ["all", "no residual", "float64"])
def test_over_ranks(case: str) -> None:
    given, group = Given(**CASES[case]), dist.group.WORLD.group_name
    arguments = (given.x, given.residual, *given.parameters, *given.running)
    passes(torch.ops.bnfold.sync_batch_norm_train, *arguments, 1e-5, 0.1, given.relu, 2, group)
    noted = given.residual is not None
    mask = torch.randint(0, 15, (kernel_calls.mask_bytes(given.x) if noted else 0,), dtype=torch.uint8)
    parameters = [None if each is None else each.detach() for each in given.parameters]
    arguments = (given.x.detach(), torch.randn_like(given.x).detach(), mask, *parameters, *given.statistics)
    ranks = torch.tensor([60.0, 2.0], dtype=torch.float64)
    passes(torch.ops.bnfold.sync_batch_norm_backward, *arguments, given.relu, ranks, 2, noted, group)


def test_the_numbers_are_torchs() -> None:
    given = Given()
    arguments = Arguments(given.x, given.residual, *given.parameters, 1e-5, True)
    y = operators.batch_norm(arguments, Running(*given.running), True)
    wanted = torch.nn.functional.batch_norm(given.x, None, None, *given.parameters, True, 0.1, 1e-5)
    wanted = torch.relu(wanted + given.residual)
    torch.testing.assert_close(y, wanted)
    inputs = (given.x, given.residual, *given.parameters)
    direction = torch.randn_like(y)
    for ours, theirs in zip(
        torch.autograd.grad(y, inputs, direction), torch.autograd.grad(wanted, inputs, direction), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
