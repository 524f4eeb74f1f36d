"""The modules: as torch's in all that can be seen, and with a sum and an activation behind them."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bnfold.nn
from bnfold.errors import UsageError

PAIRS = {
    "1d": (bnfold.nn.BatchNorm1d, nn.BatchNorm1d, (6, 5, 7)),
    "1d rows": (bnfold.nn.BatchNorm1d, nn.BatchNorm1d, (6, 5)),
    "2d": (bnfold.nn.BatchNorm2d, nn.BatchNorm2d, (4, 5, 3, 7)),
    "3d": (bnfold.nn.BatchNorm3d, nn.BatchNorm3d, (2, 5, 3, 4, 2)),
    "sync": (bnfold.nn.SyncBatchNorm, nn.SyncBatchNorm, (4, 5, 3, 7)),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no affine": {"affine": False},
    "no statistics": {"track_running_stats": False},
    "average": {"momentum": None},
    "eps": {"eps": 0.1, "momentum": 0.3},
    "float64": {"dtype": torch.float64},
}


def same(ours: nn.Module, theirs: nn.Module) -> bool:
    a, b = ours.state_dict(), theirs.state_dict()
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("options", OPTIONS)
def test_a_drop_in_for_torch(kind: str, options: str) -> None:
    ours_type, theirs_type, shape = PAIRS[kind]
    ours, theirs = ours_type(5, **OPTIONS[options]), theirs_type(5, **OPTIONS[options])
    assert isinstance(ours, theirs_type if kind != "sync" else nn.modules.batchnorm._BatchNorm)
    for _ in range(3):
        x = torch.randn(shape, dtype=OPTIONS[options].get("dtype", torch.float32))
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        y, z = ours(a), theirs(b)
        assert torch.equal(y, z)
        y.square().sum().backward()
        z.square().sum().backward()
        assert torch.equal(a.grad, b.grad)
        assert same(ours, theirs)
    ours.eval()
    theirs.eval()
    assert torch.equal(ours(x), theirs(x))
    again = theirs_type(5, **OPTIONS[options])
    again.load_state_dict(ours.state_dict())
    assert same(again, ours)
    for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(copied(x), ours(x))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.randn(2, 5), "expected 4D input"),
        (torch.randn(1, 5, 1, 1), "Expected more than 1 value per channel"),
    ],
)
def test_the_same_errors(x: Tensor, message: str) -> None:
    for kind in PAIRS["2d"][:2]:
        with pytest.raises(ValueError, match=message):
            kind(5)(x)


def test_an_empty_batch() -> None:
    for kind in PAIRS["2d"][:2]:
        norm = kind(5)
        assert norm(torch.randn(0, 5, 3, 3)).shape == (0, 5, 3, 3)
        assert torch.equal(norm.running_var, torch.ones(5))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("residual", [True, False])
def test_a_sum_and_an_activation_follow(training: bool, residual: bool) -> None:
    norm = bnfold.nn.BatchNorm2d(5, activation="relu").train(training)
    plain = nn.BatchNorm2d(5).train(training)
    plain.load_state_dict(norm.state_dict())
    x, r = torch.randn(4, 5, 3, 3, requires_grad=True), torch.randn(4, 5, 3, 3, requires_grad=True)
    y = norm(x, r) if residual else norm(x)
    wanted = torch.relu(plain(x) + r if residual else plain(x))
    assert torch.equal(y, wanted)
    inputs = (x, r) if residual else (x,)
    ours = torch.autograd.grad(y.square().sum(), inputs)
    theirs = torch.autograd.grad(wanted.square().sum(), inputs)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert repr(norm).endswith("activation='relu')")


def test_bad_arguments_are_told() -> None:
    with pytest.raises(UsageError, match=r"activation='gelu' is unknown.*None, 'relu'"):
        bnfold.nn.BatchNorm2d(5, activation="gelu")
    with pytest.raises(
        UsageError, match=r"BatchNorm2d: the residual of shape \[4, 1, 5, 5\] does not fit.*\[4, 5, 3, 3\]"
    ):
        bnfold.nn.BatchNorm2d(5)(torch.randn(4, 5, 3, 3), torch.randn(4, 1, 5, 5))


def test_a_larger_residual_is_torchs_sum() -> None:
    norm = bnfold.nn.BatchNorm2d(5, activation="relu").eval()
    x, r = torch.randn(4, 5, 1, 1), torch.randn(4, 5, 3, 3)
    assert torch.equal(norm(x, r), (nn.BatchNorm2d(5).eval()(x) + r).relu())


def test_gradients_and_second_gradients() -> None:
    norm = bnfold.nn.BatchNorm2d(3, dtype=torch.float64)
    x = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    r = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(norm, (x, r))
    assert torch.autograd.gradgradcheck(norm, (x, r))


def test_a_fold_leaves_the_sum_and_the_activation() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), bnfold.nn.BatchNorm2d(3, activation="relu")

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.norm(self.conv(x), x)
            return y

    net, x = Block(), torch.randn(2, 3, 5, 5)
    net(x)
    net.eval()
    folded, report = bnfold.fold_module(net, x)
    assert [entry.outcome for entry in report.entries] == ["folded"]
    assert repr(folded.norm) == "AddActivation(activation='relu')"
    with torch.no_grad():
        assert torch.allclose(folded(x), net(x), atol=1e-6)


def test_it_compiles_whole_and_folds() -> None:
    net = nn.Sequential(nn.Conv2d(3, 5, 3), bnfold.nn.BatchNorm2d(5, activation="relu"), nn.Conv2d(5, 2, 3))
    x = torch.randn(2, 3, 9, 9)
    net(x)
    net.eval()
    with torch.no_grad():
        wanted = net(x)
        compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
        assert torch.allclose(compiled(x), wanted, atol=1e-6)
        _, report = bnfold.fold_module(net, x)
        assert [entry.outcome for entry in report.entries] == ["folded"]
        program, report = bnfold.fold_program(torch.export.export(net, (x,)))
        assert torch.allclose(program.module()(x), wanted, atol=1e-5)


def test_a_net_trains_as_with_torch() -> None:
    """The same seed, the same loss at every step."""

    def losses(kind: Any) -> list[float]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 4, 3), kind(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
        step = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
        found = []
        for _ in range(10):
            x, y = torch.randn(8, 1, 8, 8), torch.randint(0, 3, (8,))
            loss = nn.functional.cross_entropy(net(x), y)
            step.zero_grad()
            loss.backward()
            step.step()
            found.append(loss.item())
        return found

    assert losses(bnfold.nn.BatchNorm2d) == losses(nn.BatchNorm2d)
