"""Where a kernel cannot be had or run, torch's own operations stand in, and a warning says once why."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import bnfold.nn
from bnfold.kernels.compile import KernelError
from bnfold.kernels.launch import Device
from bnfold.nn import functional, kernel_calls, steps

LIMITS = Device((9, 0), multiprocessors=132, shared_memory=232448, clusters=8, cooperative=True)


class Broken:
    """A device whose launches fail."""

    limits = LIMITS

    def launch(self, launch: Any, *arguments: object) -> None:
        raise KernelError(f"{launch.source} does not compile")


@pytest.fixture
def untried() -> Iterator[None]:
    """As in a process that has tried no device, and told nothing."""
    for cached in (functional._tried, steps._warn):
        cached.cache_clear()
    yield
    functional._tried.cache_clear()


def results(norm: nn.Module, x: torch.Tensor, residual: torch.Tensor) -> list[torch.Tensor]:
    """Of two steps of training and one of evaluation: outputs, gradients and buffers."""
    found: list[torch.Tensor] = []
    for training in (True, True, False):
        norm.train(training)
        a, b = x.clone().requires_grad_(), residual.clone().requires_grad_()
        y = norm(a, b) if isinstance(norm, bnfold.nn.BatchNorm2d) else torch.relu(norm(a) + b)
        y.square().sum().backward()
        assert a.grad is not None
        assert b.grad is not None
        found += [y.detach(), a.grad, b.grad]
    gradients = [each.grad for each in norm.parameters() if each.grad is not None]
    return [*found, *gradients, *norm.state_dict().values()]


def compared(seed: int = 0) -> None:
    torch.manual_seed(seed)
    x, residual = torch.randn(2, 4, 8, 6, 5)
    ours = results(bnfold.nn.BatchNorm2d(8, activation="relu"), x, residual)
    theirs = results(nn.BatchNorm2d(8), x, residual)
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("untried")
def test_a_device_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def machine_of(x: torch.Tensor) -> None:
        asked.append(x.device)
        raise KernelError("the GPU is too old")

    monkeypatch.setattr(kernel_calls, "machine_of", machine_of)
    with pytest.warns(UserWarning, match="torch's own operations") as told:
        compared()
    assert [str(each.message) for each in told] == [
        "bnfold.nn runs on torch's own operations: the GPU is too old"
    ]
    assert len(asked) == 1


@pytest.mark.usefixtures("untried")
def test_kernels_that_do_not_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_calls, "machine_of", lambda x: Broken())
    with pytest.warns(UserWarning, match="torch's own operations") as told:
        compared()
    sources = ["forward.cuh", "backward.cuh", "apply.cuh"]
    assert [str(each.message) for each in told] == [
        f"bnfold.nn runs on torch's own operations: {source} does not compile" for source in sources
    ]


@pytest.mark.usefixtures("untried")
def test_a_kind_of_device_without_kernels_is_nothing_to_be_told_of() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compared()


@pytest.mark.usefixtures("untried")
@pytest.mark.parametrize("norm", [bnfold.nn.BatchNorm2d, bnfold.nn.SyncBatchNorm])
def test_an_export_that_comes_first_does_not_hold_the_trial_of_the_device(norm: type[nn.Module]) -> None:
    program = torch.export.export(norm(3).eval(), (torch.randn(2, 3, 4, 4),))
    assert [str(node.target) for node in program.graph.nodes if node.op == "call_function"] == [
        "aten.batch_norm.default"
    ]
