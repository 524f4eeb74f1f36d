"""What is left of this package's batch norms is torch's own where torch has it: other tools know that."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

import bnfold
import bnfold.nn

X = torch.linspace(-1, 1, 2 * 3 * 6 * 6).reshape(2, 3, 6, 6)


def net(activation: str | None) -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 3, 3),
        bnfold.nn.BatchNorm2d(3, activation="relu"),
        nn.Conv2d(3, 3, 3, bias=False),
        bnfold.nn.SyncBatchNorm(3, activation=activation),
    )
    for norm in (module[1], module[3]):
        nn.init.uniform_(norm.running_mean)
        nn.init.uniform_(norm.bias)
    return module.eval()


@pytest.mark.parametrize("activation", [None, "relu"])
def test_an_identity_or_a_relu(activation: str | None) -> None:
    module = net(activation)
    folded, _ = bnfold.fold_module(module, X)
    second = nn.Identity if activation is None else nn.ReLU
    assert [type(part) for part in folded] == [nn.Conv2d, nn.ReLU, nn.Conv2d, second]
    assert not any(part.training for part in folded.modules())
    y = module(X)
    assert torch.allclose(torch.jit.script(folded)(X), y, atol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        fused = torch.ao.quantization.fuse_modules(folded, [["0", "1"]])
    assert torch.allclose(fused(X), y, atol=1e-6)


class Sigmoid(bnfold.nn.BatchNorm2d):
    """With an activation of its own."""

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        return super().forward(input, residual).sigmoid()

    def without_batch_norm(self) -> nn.Module:
        return nn.Sigmoid()


def test_what_a_subclass_says_holds() -> None:
    module = nn.Sequential(nn.Conv2d(3, 3, 1), Sigmoid(3)).eval()
    folded, _ = bnfold.fold_module(module, X)
    assert type(folded[1]) is nn.Sigmoid


class Added(nn.Module):
    def __init__(self, activation: str | None) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), bnfold.nn.BatchNorm2d(3, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x), residual=x)


@pytest.mark.parametrize("activation", [None, "relu"])
def test_a_sum_can_be_scripted(activation: str | None) -> None:
    module = Added(activation).eval()
    folded, report = bnfold.fold_module(module, X)
    assert len(report.folded) == 1
    scripted = torch.jit.script(folded)
    assert torch.allclose(scripted(X), module(X), atol=1e-6)


def test_what_stays_is_reverted_to_be_scripted() -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 3, 1), nn.Sigmoid(), bnfold.nn.BatchNorm2d(3, activation="relu")
    ).eval()
    folded, report = bnfold.fold_module(module, X)
    assert len(report.kept) == 1
    y = folded(X)
    assert torch.equal(torch.jit.script(bnfold.nn.revert(folded))(X), y)
