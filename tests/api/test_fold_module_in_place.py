"""`fold_module` of code that works in place: what others read stays as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bnfold
from tests.api.test_fold_module import ROUNDING, error
from tests.torch_graph.modules import IMAGE, Fn, bn, conv, randomize


@pytest.mark.parametrize("write", [lambda y: y.relu_(), lambda y: y[:, :2].mul_(2), lambda y: y.add_(1)])
def test_what_works_in_place_behind_a_batch_norm_spares_what_others_read(write: Any) -> None:
    """Without the call of the batch norm, it would write into the output of the conv, or into the input."""

    def run(m: Any, x: Tensor) -> Tensor:
        y = m.c(x)
        z = m.b(y)
        write(z)
        return m.d(y) + z

    module = randomize(Fn(run, c=conv(6, 4), b=bn(4), d=conv(4, 4, 1)))
    x = torch.randn(IMAGE)
    folded, report = bnfold.fold_module(module, x)
    assert [entry.outcome for entry in report.entries] == ["folded"]
    assert type(folded.b) is nn.BatchNorm2d
    assert error(folded, module, x) < ROUNDING
    alone = randomize(Fn(lambda m, x: (z := m.b(m.c(x)), write(z))[0], c=conv(6, 4), b=bn(4)))
    folded, _ = bnfold.fold_module(alone, x)  # nobody else reads the conv
    assert type(folded.b) is nn.Identity


def test_a_view_is_memory_that_others_read() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        y = m.c(x)
        z = m.b(y.flatten(2)).relu_()
        return m.d(y) + z.reshape_as(y)

    module = randomize(Fn(run, c=conv(6, 4), b=nn.BatchNorm1d(4), d=conv(4, 4, 1)))
    x = torch.randn(IMAGE)
    folded, report = bnfold.fold_module(module, x)
    assert [entry.outcome for entry in report.entries] == ["folded"]
    assert type(folded.b) is nn.BatchNorm1d
    assert error(folded, module, x) < ROUNDING


LATER = {
    "the input": lambda y, z: (torch.relu_(y), z),
    "a view of the input": lambda y, z: (y, z, y[:, :2].mul_(2))[:2],
    "a view, and an output that is one": lambda y, z: (*(y.permute(0, 2, 3, 1).mul_(2), z)[1:], y),
}


@pytest.mark.parametrize("name", LATER)
def test_what_is_written_into_the_input_later_spares_the_output(name: str) -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        y = m.c(x)
        a, b = LATER[name](y, m.b(y))
        return m.d(a) + m.e(b).mul(0.5)

    module = randomize(Fn(run, c=conv(6, 4), b=bn(4), d=conv(4, 4, 1), e=conv(4, 4, 1)), negative=False)
    x = torch.randn(IMAGE)
    folded, report = bnfold.fold_module(module, x)
    assert error(folded, module, x) < ROUNDING
    assert report.folded
    assert type(folded.b) is nn.BatchNorm2d


def test_a_relu_in_place_before_a_batch_norm_is_no_reason_to_keep_its_call() -> None:
    module = randomize(nn.Sequential(conv(6, 4), nn.ReLU(inplace=True), bn(4), conv(4, 4)), negative=False)
    folded, report = bnfold.fold_module(module, torch.randn(IMAGE))
    assert report.folded
    assert type(folded[2]) is nn.Identity


def test_the_check_gives_each_run_inputs_of_its_own() -> None:
    """The module writes into its input: a second run on the same tensor would be another one."""

    def run(m: Any, x: Tensor) -> Tensor:
        x -= 0.5
        return m.b(m.c(x))

    module, x = randomize(Fn(run, c=conv(6, 4), b=bn(4))), torch.randn(IMAGE)
    before = x.clone()
    folded, report = bnfold.fold_module(module, x)
    assert torch.equal(x, before)
    assert report.verification.outputs[0].max_rel < ROUNDING
    assert error(folded, module, x.clone()) < ROUNDING
    _, report = bnfold.fold_program(torch.export.export(module, (x.clone(),)), check="run")
    assert report.verification.outputs[0].max_rel < ROUNDING
