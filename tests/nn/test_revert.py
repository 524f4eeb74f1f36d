"""`revert`: this package's batch norms become torch's again, and all else stays."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bnfold
import bnfold.nn
from bnfold.errors import UsageError

SHAPE = (4, 3, 8, 8)
OURS: list[Any] = [
    bnfold.nn.BatchNorm1d,
    bnfold.nn.BatchNorm2d,
    bnfold.nn.BatchNorm3d,
    bnfold.nn.SyncBatchNorm,
]
THEIRS = [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm]


def test_all_kinds_in_place() -> None:
    module = nn.ModuleList([kind(4, momentum=None, dtype=torch.bfloat16) for kind in OURS]).train()
    module[1].eval()
    module[2].note = "kept"
    module[0].register_forward_hook(hook := lambda *_: None)
    parts, weights, state = list(module), [part.weight for part in module], module.state_dict()
    assert bnfold.nn.revert(module) is module
    assert [type(part) for part in module] == THEIRS
    assert all(a is b for a, b in zip(module, parts, strict=True))
    assert all(part.weight is weight for part, weight in zip(module, weights, strict=True))
    assert [part.training for part in module] == [True, False, True, True]
    assert module[2].note == "kept" and list(module[0]._forward_hooks.values()) == [hook]
    assert {key: value.dtype for key, value in module.state_dict().items()} == {
        key: value.dtype for key, value in state.items()
    }
    assert all(
        vars(part).keys() == vars(kind(4)).keys() | {"note"} for part, kind in [(module[2], THEIRS[2])]
    )


def test_there_and_back() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(), nn.BatchNorm2d(3))
    plain[4].eval()
    for fuse in (False, True):
        module, other, x = copy.deepcopy(plain), copy.deepcopy(plain), torch.randn(SHAPE)
        bnfold.nn.revert(bnfold.nn.convert(module, fuse_activations=fuse))
        for part, was in zip(module.modules(), other.modules(), strict=True):
            assert type(part) is type(was) and vars(part).keys() == vars(was).keys()
            assert part.training is was.training
        torch.manual_seed(1)
        y = module(x)
        torch.manual_seed(1)
        assert torch.equal(other(x), y)
        torch.jit.script(module)


class Own(nn.Module):
    """Written for this package: activations and sums are the batch norms' own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.one = nn.Conv2d(3, 3, 1), bnfold.nn.BatchNorm2d(3, activation="relu")
        self.two, self.three = bnfold.nn.BatchNorm2d(3, activation="relu"), bnfold.nn.BatchNorm2d(3)
        self.four = bnfold.nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(self.conv(x))
        y = self.two(y, residual=y + x)
        return self.four(self.three(input=y, residual=self.conv(y)))


def test_activations_and_sums_become_calls() -> None:
    module = Own()
    module.four.eval()
    plain, x = copy.deepcopy(module), torch.randn(SHAPE)
    assert bnfold.nn.revert(module) is module
    assert isinstance(module, Own)
    assert {type(part) for part in (module.one, module.two, module.three, module.four)} == {nn.BatchNorm2d}
    assert list(module.state_dict()) == list(plain.state_dict()) and not module.four.training
    for mode in (True, False):
        assert torch.equal(module.train(mode)(x), plain.train(mode)(x))
    assert torch.equal(pickle.loads(pickle.dumps(module))(x), plain(x))
    assert torch.equal(torch.jit.script(module)(x), plain(x))
    bnfold.nn.convert(module, fuse_activations=True)
    assert [part.activation for part in (module.one, module.two, module.three)] == ["relu", "relu", None]
    assert torch.equal(module(x), plain(x))


def test_without_any_no_graph_is_made() -> None:
    module = nn.Sequential(nn.Conv2d(3, 3, 1), bnfold.nn.BatchNorm2d(3))
    assert type(bnfold.nn.revert(module)) is nn.Sequential
    assert type(module[1]) is nn.BatchNorm2d


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), bnfold.nn.BatchNorm2d(3, activation="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x), residual=x)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x)) + x)


def test_what_was_folded_comes_back_too() -> None:
    own, x = Residual().eval(), torch.randn(SHAPE)
    converted = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), Plain()).eval()
    bnfold.nn.convert(converted, fuse_activations=True)
    for module in (own, converted):
        y = module(x)
        folded, report = bnfold.fold_module(module, x)
        bnfold.nn.revert(folded)
        assert report.folded
        assert not any(type(part).__module__.startswith("bnfold.") for part in folded.modules())
        assert torch.allclose(folded(x), y, atol=1e-5)
        assert torch.allclose(torch.jit.script(folded)(x), y, atol=1e-5)


class Branching(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x) if x.sum() > 0 else x


class Watched(nn.Module):
    """Its batch norm is called in a module that carries a hook, and is a call of its own. And by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(bnfold.nn.BatchNorm2d(3, activation="relu"))
        self.inner.register_forward_hook(lambda *_: None)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + self.inner[0](x)


class Unused(nn.Module):
    """Somebody else may call its batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.other = bnfold.nn.BatchNorm2d(3, activation="relu")

    def forward(self, x: Tensor) -> Tensor:
        return x * 2


def branching() -> nn.Module:
    return Branching(bnfold.nn.BatchNorm2d(3, activation="relu"))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            branching,
            r"^torch.fx cannot trace Branching: .*\ntorch's batch norms have no .* these have: norm$",
        ),
        (Watched, r"^the graph does not show the calls of inner\.0$"),
        (Unused, r"^the graph does not show the calls of other$"),
        (lambda: 3, r"^revert takes a torch.nn.Module, not int$"),
    ],
)
def test_what_cannot_be_is_refused_and_left_alone(make: Callable[[], Any], said: str) -> None:
    module = make()
    with pytest.raises(UsageError, match=said):
        bnfold.nn.revert(module)
    if isinstance(module, nn.Module):
        [norm] = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
        assert type(norm) is bnfold.nn.BatchNorm2d and norm.activation == "relu"


def test_without_activations_it_need_not_be_traced() -> None:
    module = bnfold.nn.revert(Branching(bnfold.nn.BatchNorm2d(3)))
    assert type(module) is Branching and type(module.norm) is nn.BatchNorm2d


def test_what_was_only_converted_is_not_run() -> None:
    class Noting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.calls = nn.BatchNorm2d(3), []

        def forward(self, x: Tensor) -> Tensor:
            self.calls.append(x)
            return self.norm(x)

    module = bnfold.nn.revert(bnfold.nn.convert(Noting()))
    assert type(module.norm) is nn.BatchNorm2d and not module.calls
