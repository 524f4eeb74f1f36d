"""Where a kernel cannot be had or run, torch's own operations stand in, and a warning says once why."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

import bnfold.nn
from bnfold.kernels.compile import KernelError, Refused
from bnfold.kernels.launch import Device, Launch
from bnfold.nn import functional, kernel_calls, steps
from tests.kernels.host import unavailable
from tests.kernels.machine import DEVICES, HostMachine

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


@dataclass
class Refusing(HostMachine):
    """A device that does not let blocks run together. refused: what of it, in the launch's own words."""

    refused: tuple[str, ...] = ()
    error: type[KernelError] = Refused

    def launch(self, launch: Launch, *arguments: Any) -> None:
        if (launch.cluster > 1 and "cluster" in self.refused) or (
            launch.cooperative and "cooperative" in self.refused
        ):
            self.launches.append(launch)
            raise self.error(f"no room for {launch.row}")
        super().launch(launch, *arguments)

    def rows(self) -> list[str]:
        found = [launch.row for launch in self.launches]
        self.launches.clear()
        return found


# What is tried for a tensor that a cluster would take, and what runs in the end.
REFUSALS = {
    ("cluster",): ["cluster", "cooperative grid"],
    ("cluster", "cooperative"): ["cluster", "cooperative grid", "one block, windows"],
}


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Refusing:
    if unavailable() is not None:
        pytest.skip(unavailable() or "")
    machine = Refusing(DEVICES["cluster"])
    monkeypatch.setattr(kernel_calls, "machine_of", lambda x: machine)
    monkeypatch.setattr(functional, "_tried", lambda device: True)
    monkeypatch.setattr(kernel_calls, "_LESS", {})
    kernel_calls._warn.cache_clear()
    return machine


@pytest.mark.parametrize("refused", REFUSALS)
def test_the_next_line_of_the_table_stands_in(refusing: Refusing, refused: tuple[str, ...]) -> None:
    refusing.refused = refused
    norm, x, tried = bnfold.nn.BatchNorm2d(2), torch.randn(40, 2, 24, 24), REFUSALS[refused]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        y = norm(x)
        assert refusing.rows() == tried
        assert torch.equal(norm(x), y)
        norm(torch.randn(41, 2, 24, 24))  # remembered for other shapes too
        assert refusing.rows() == tried[-1:] * 2
    (text,) = (str(each.message) for each in told)
    what = "grids" if "cooperative" in refused else "clusters"
    assert text == (
        f"bnfold.nn: cpu does not let {what} of blocks run together: {tried[-1]} stands in "
        f"(no room for {tried[-2]})"
    )
    torch.testing.assert_close(y, nn.BatchNorm2d(2)(x), rtol=2e-5, atol=2e-5)


def test_another_device_is_not_thought_to_refuse(refusing: Refusing, monkeypatch: pytest.MonkeyPatch) -> None:
    refusing.refused = ("cluster",)
    x = torch.randn(40, 2, 24, 24)
    with pytest.warns(UserWarning, match="stands in"):
        kernel_calls.statistics(x)
    other = Refusing(dataclasses.replace(refusing.limits, multiprocessors=7))
    monkeypatch.setattr(kernel_calls, "machine_of", lambda x: other)
    kernel_calls.statistics(x)
    assert other.rows() == ["cluster"]


def test_what_fails_whatever_is_launched_is_not_remembered(refusing: Refusing) -> None:
    """An error of earlier work, say, which each launch reports."""
    refusing.refused = ("cluster", "cooperative")
    x, launch = torch.randn(40, 2, 24, 24), HostMachine.launch

    def failing(self: HostMachine, *arguments: Any) -> None:
        raise KernelError("the device is lost")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HostMachine, "launch", failing)
        with pytest.raises(KernelError, match="the device is lost"):
            kernel_calls.statistics(x)
    assert HostMachine.launch is launch
    assert not kernel_calls._LESS


def test_a_kernel_that_does_not_compile_is_not_refused(refusing: Refusing) -> None:
    refusing.refused, refusing.error = ("cluster",), KernelError
    with pytest.raises(KernelError, match="no room"):
        kernel_calls.statistics(torch.randn(40, 2, 24, 24))
    assert refusing.rows() == ["cluster"]


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
