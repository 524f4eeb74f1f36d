"""Trained networks: all batch norms fold, and what they say of a picture stays."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bnfold
from tests.torch_graph.trained import NETWORKS

pytestmark = pytest.mark.xdist_group("folded trained networks")
SUBNORMAL = "mobilenetv2, embedder"  # running variances down to 5.6e-45


class Trained(NamedTuple):
    """A network, its picture, the answer in float64, how many batch norms it has; folded, and the report."""

    network: nn.Module
    x: Tensor
    exact: np.ndarray[Any, Any]
    count: int
    folded: nn.Module
    report: bnfold.Report


@functools.cache
@torch.no_grad()
def made(name: str) -> Trained:
    """The same for all tests: nobody changes it."""
    make, picture, count = NETWORKS[name]
    network, x = make(), picture()
    exact = copy.deepcopy(network).double()(x.double()).numpy()
    return Trained(network, x, exact, count, *bnfold.fold_module(network, x))


def off(found: Any, exact: np.ndarray[Any, Any]) -> float:
    """The error against float64, relative to the largest value."""
    return float(np.abs(np.asarray(found, np.float64) - exact).max() / np.abs(exact).max())


def sound(tensor: Tensor) -> bool:
    """Finite, and no subnormal numbers, which some machines take for zero and others take ages over."""
    size = tensor.detach().abs()
    return bool(torch.isfinite(tensor).all() and ((size == 0) | (size >= torch.finfo(size.dtype).tiny)).all())


def all_folded(report: Any, count: int) -> bool:
    outcomes = [entry.outcome for entry in report.entries if "batch" in entry.op.lower()]
    return outcomes == ["folded"] * count and report.verification.status == "passed"


@pytest.mark.parametrize("name", NETWORKS)
def test_all_batch_norms_fold_in_modules_and_programs(name: str) -> None:
    network, x, exact, count, folded, report = made(name)
    with torch.no_grad():
        own = off(network(x), exact)
        module = folded(x)
    program, ledger = bnfold.fold_program(torch.export.export(network, (x,)))
    assert all_folded(report, count)
    assert all_folded(ledger, count)
    assert not any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in folded.modules())
    for value in (module, program.module()(x).detach()):
        error = off(value, exact)
        assert error <= 1e-5 or error <= 2 * own
    for state in (folded.state_dict(), program.state_dict):
        assert all(sound(value) for value in state.values() if value.is_floating_point())


@pytest.mark.parametrize("name", [name for name in NETWORKS if "ImageNet" not in name])
def test_all_batch_norms_fold_in_exports(name: str, tmp_path: Path) -> None:
    trained = made(name)
    assert all_folded(bnfold.export(trained.network, trained.x, tmp_path / "net.onnx"), trained.count)


def test_the_cat_is_still_a_cat() -> None:
    trained = made("mobilenetv2, ImageNet")
    with torch.no_grad():
        for one in (trained.network(trained.x), trained.folded(trained.x)):
            assert int(one.argmax()) == 285  # an Egyptian cat
            assert float(one.max()) == pytest.approx(18.5176, abs=1e-3)


def test_a_line_is_text_and_an_astronaut_happy() -> None:
    for name, place, value in (("line or not", 0, 10.4), ("emotion", 3, 0.98)):
        trained = made(name)
        with torch.no_grad():
            before, after = trained.network(trained.x)[0], trained.folded(trained.x)[0]
        assert int(before.argmax()) == int(after.argmax()) == place
        assert float(after.max()) == pytest.approx(value, abs=0.1)


def test_the_same_characters_are_read() -> None:
    trained = made("line reader")
    with torch.no_grad():
        before, after = trained.network(trained.x).argmax(2), trained.folded(trained.x).argmax(2)
    assert torch.equal(before, after)
    assert len(before.unique()) > 2


def test_channels_without_variance_are_told() -> None:
    trained = made(SUBNORMAL)
    norms = {n: part for n, part in trained.network.named_modules() if isinstance(part, nn.BatchNorm2d)}
    assert min(float(norm.running_var.min()) for norm in norms.values()) < 1e-44
    assert not all(sound(norm.running_var) for norm in norms.values())
    tiny = torch.finfo(torch.float32).tiny
    wanted = {
        name: tuple(torch.nonzero((n.running_var < tiny) | (n.weight.abs() < tiny)).flatten().tolist())
        for name, n in norms.items()
    }
    assert {entry.name: entry.dead_channels for entry in trained.report.entries} == wanted
    assert sum(map(len, wanted.values())) > 10
    assert "dead channels, whose output never changes" in str(trained.report)
