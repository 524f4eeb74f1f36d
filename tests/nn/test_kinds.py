"""What a module keeps of its calls: for tensors of the same kinds, and no others."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

import bnfold.nn
from bnfold.nn import functional, kernel_calls, kinds
from bnfold.nn.kinds import Decisions, same_kinds
from tests.kernels.host import unavailable
from tests.kernels.machine import DEVICES, HostMachine

REASON = unavailable()
needs_kernels = pytest.mark.skipif(REASON is not None, reason=REASON or "")
X = torch.zeros(2, 3, 4, 5)


class Mode(TorchDispatchMode):
    """Sees every operation."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


class Own(Tensor):
    """A class of a user."""


OTHERS: dict[str, Callable[[], Tensor]] = {
    "another type": lambda: X.double(),
    "another size": lambda: torch.zeros(2, 3, 5, 4),
    "another rank": lambda: torch.zeros(2, 3, 4),
    "other strides": lambda: X.contiguous(memory_format=torch.channels_last),
    "a gradient": lambda: X.clone().requires_grad_(),
    "a parameter": lambda: nn.Parameter(X.clone(), requires_grad=False),
    "another class": lambda: X.clone().as_subclass(Own),
    "another device": lambda: X.to("meta"),
    "negated": lambda: torch._neg_view(X),  # type: ignore[attr-defined]
    "sparse": lambda: X.to_sparse(),
    "of inference mode": lambda: torch.inference_mode()(lambda: X.clone())(),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_kinds(name: str) -> None:
    same = same_kinds([X, X])
    assert same is not None
    assert same(X.clone(), torch.ones_like(X))
    assert not same(X, OTHERS[name]())
    assert not same(OTHERS[name](), X)


TRANSFORMS: dict[str, Callable[[Callable[[Tensor], Tensor]], Any]] = {
    "vmap": lambda inside: torch.vmap(inside)(torch.zeros(3, 2)),
    "grad": lambda inside: torch.func.grad(inside)(torch.zeros(3)),
    "make_fx": lambda inside: make_fx(inside)(torch.zeros(3)),
    "a trace": lambda inside: torch.jit.trace(inside, torch.zeros(3), check_trace=False),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TRANSFORMS)
def test_inside_of_transforms(name: str) -> None:
    """Of a tensor that they do not wrap."""
    found: list[str | None] = []
    kept: Decisions[str] = Decisions()
    kept.note((), [X], "outside")

    def inside(each: Tensor) -> Tensor:
        found.append(kept.find((), [X]))
        return each.sum()

    TRANSFORMS[name](inside)
    assert found == [None]


MODES: dict[str, Callable[[], Any]] = {
    "a mode": Mode,
    "fake tensors": FakeTensorMode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference": torch.inference_mode,
    "forward-mode derivatives": forward_ad.dual_level,
}


@pytest.mark.parametrize("name", MODES)
def test_inside_of_modes(name: str) -> None:
    kept: Decisions[str] = Decisions()
    kept.note((), [X], "outside")
    with MODES[name]():
        assert kept.find((), [X]) is None
    assert kept.find((), [X]) == "outside"


def test_a_decision_is_for_its_settings() -> None:
    kept: Decisions[str] = Decisions()
    kept.note((True, 0.1), [X, None], "one")
    kept.note((False, 0.1), [X, None], "two")
    y = torch.zeros_like(X)
    kept.note((True, 0.1), [X, y], "three")
    assert [kept.find((on, 0.1), [X, None]) for on in (True, False)] == ["one", "two"]
    assert kept.find((True, 0.1), [X, y]) == "three"
    assert kept.find((True, 0.1), [None, X]) is None
    assert kept.find((True, 0.2), [X, None]) is None
    assert kept.find((True, 0.1), [X, X.double()]) is None


def test_the_oldest_go() -> None:
    kept: Decisions[int] = Decisions()
    tensors = [torch.zeros(size) for size in range(1, kinds.MOST + 3)]
    for number, each in enumerate(tensors):
        kept.note((), [each], number)
    assert [kept.find((), [each]) for each in tensors] == [None, None, *range(2, kinds.MOST + 2)]


def test_a_tensor_in_two_places_is_decided_for_anew() -> None:
    kept: Decisions[str] = Decisions()
    kept.note((), [X, X.clone()], "one")
    kept.note((), [X, X], "two")
    assert kept.find((), [X, X]) is None
    assert kept.find((), [X, X.clone()]) == "one"


def test_tensors_are_not_kept() -> None:
    kept: Decisions[int] = Decisions()
    x = torch.zeros(7)
    kept.note((), [x], 1)
    seen = weakref.ref(x)
    del x
    gc.collect()
    assert seen() is None


def test_a_torch_without_guards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch._C._dynamo.guards, "TensorGuards")
    kinds._guards_work.cache_clear()
    try:
        kept: Decisions[int] = Decisions()
        kept.note((), [X], 1)
        assert kept.find((), [X]) is None
    finally:
        kinds._guards_work.cache_clear()


# in the modules


def decided(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes that a decision was made for, from now on."""
    found: list[tuple[int, ...]] = []
    decide = bnfold.nn.BatchNorm2d._decided

    def noting(self: Any, x: Tensor, *rest: Any) -> Any:
        found.append(tuple(x.shape))
        return decide(self, x, *rest)

    monkeypatch.setattr(bnfold.nn.BatchNorm2d, "_decided", noting)
    return found


@needs_kernels
def test_a_module_decides_once(machine: HostMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = decided(monkeypatch)
    norm, large, small = bnfold.nn.BatchNorm2d(3), torch.randn(4, 3, 5, 6), torch.randn(2, 3, 5, 6)
    for _ in range(3):
        norm.train()
        norm(large)
        norm(small)
        norm.eval()
        norm(large)
    assert asked == [(4, 3, 5, 6), (2, 3, 5, 6), (4, 3, 5, 6)]
    assert len(machine.launches) == 9


@needs_kernels
@pytest.mark.parametrize("name", ["copy", "deep copy", "pickle"])
def test_copies_decide_for_themselves(machine: HostMachine, name: str) -> None:
    norm, x = bnfold.nn.BatchNorm2d(3), torch.randn(4, 3, 5, 6)
    norm(x)
    ways = {
        "copy": copy.copy,
        "deep copy": copy.deepcopy,
        "pickle": lambda norm: pickle.loads(pickle.dumps(norm)),
    }
    other = ways[name](norm)
    assert "_decisions" in vars(norm)
    assert vars(other).keys() == vars(bnfold.nn.BatchNorm2d(3)).keys()
    assert torch.equal(other(x), norm(x))


CHANGES: dict[str, Callable[[Any], Any]] = {
    "half the parameters": lambda norm: [
        setattr(each, "data", each.data.bfloat16()) for each in norm.parameters()
    ],
    "all in double": lambda norm: norm.double(),
    "a parameter in double": lambda norm: setattr(norm.weight, "data", norm.weight.data.double()),
    "a parameter that is not dense": lambda norm: setattr(norm.bias, "data", torch.ones(6)[::2]),
    "no bias": lambda norm: setattr(norm, "bias", None),
    "no statistics": lambda norm: [setattr(norm, name, None) for name in ("running_mean", "running_var")],
    "another momentum": lambda norm: setattr(norm, "momentum", 0.7),
    "the average": lambda norm: setattr(norm, "momentum", None),
    "another eps": lambda norm: setattr(norm, "eps", 0.3),
    "an activation": lambda norm: setattr(norm, "activation", "relu"),
    "nothing is kept": lambda norm: setattr(norm, "track_running_stats", False),
    "frozen parameters": lambda norm: norm.requires_grad_(False),
}


@needs_kernels
@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_behind_a_decision(name: str) -> None:
    """A module that has been called does as one that has not."""
    torch.manual_seed(0)
    used, x = bnfold.nn.BatchNorm2d(3), torch.randn(4, 3, 5, 6)
    used(x)
    fresh = bnfold.nn.BatchNorm2d(3)
    fresh.load_state_dict(used.state_dict())
    found = []
    for norm in (used, fresh):
        CHANGES[name](norm)
        try:
            y = norm(x)
        except RuntimeError as error:  # torch's own
            found.append([str(error)])
            continue
        found.append([y.detach(), y.requires_grad, *norm.state_dict().values()])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other


@needs_kernels
@pytest.mark.usefixtures("machine")
def test_parameters_of_another_number_are_torchs_to_refuse() -> None:
    """As after pruning in place, of one parameter alone: nothing is read behind its end."""
    norm, x = bnfold.nn.BatchNorm2d(3), torch.randn(4, 3, 5, 6)
    norm(x)
    norm.weight.data = norm.weight.data[:2]
    with pytest.raises(RuntimeError):
        norm(x)


@pytest.mark.parametrize("name", ["x", "residual"])
def test_no_call_is_ready_for_what_has_to_be_copied(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And to find that out copies nothing."""
    dense, last = X.clone(), X.contiguous(memory_format=torch.channels_last)

    def copied(*given: Any, **options: Any) -> Tensor:
        raise AssertionError

    monkeypatch.setattr(Tensor, "contiguous", copied)
    given = {"x": (X[:, :, ::2], X[:, :, ::2]), "residual": (dense, last)}[name]
    assert functional.ready_for(*given) is None
    assert functional.ready_for(dense, X) is not None
    assert functional.ready_for(last, None) is not None


def near(y: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(y.detach(), wanted, rtol=2e-5, atol=2e-5)


@needs_kernels
def test_another_machine_and_other_addresses(machine: HostMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kinds do not tell is asked at each call."""
    norm, x = bnfold.nn.BatchNorm2d(4), torch.randn(40, 4, 24, 24)
    wanted = norm(x).detach()
    memory = torch.empty(x.numel() + 1)
    odd = memory[1:].view_as(x).copy_(x)
    assert odd.data_ptr() % 16
    near(norm(odd), wanted)
    near(norm(x), wanted)
    widths = [launch.width for launch in machine.launches]
    assert widths == [4, 1, 4]
    machine.launches.clear()
    machine.limits = DEVICES["one block, windows"]
    near(norm(x), wanted)
    assert [launch.row for launch in machine.launches] == ["one block, windows"]
    other = HostMachine(machine.limits)
    monkeypatch.setattr(kernel_calls, "machine_of", lambda x: other)
    near(norm(x), wanted)
    assert (len(machine.launches), len(other.launches)) == (1, 1)
