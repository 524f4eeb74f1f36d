"""With merged calls a module stays what it was: order, hooks, methods, copies and pickles."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx, nn

import bnfold
import bnfold.nn
from bnfold.errors import UsageError

SHAPE = (4, 3, 8, 8)


class Block(nn.Module):
    """Its parameters are not defined in the order in which they are used."""

    def __init__(self) -> None:
        super().__init__()
        self.short = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
        self.one = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU())
        self.two, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.two(F.dropout(self.one(x), 0.3, self.training)))
        return F.relu(y + self.short(x))


class Net(nn.Module):
    """With a method and a `train` of its own, which keeps a batch norm frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)
        self.scale = nn.Parameter(torch.ones(()))
        self.block = Block()
        self.classes = ["cat", "dog"]

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.block(x) * self.scale)

    def classify(self, x: Tensor) -> Tensor:
        return self.head(x.mean((2, 3)))

    def train(self, mode: bool = True) -> Net:
        super().train(mode)
        self.block.norm.eval()
        return self


def net() -> Net:
    torch.manual_seed(0)
    return Net().train()


def run(module: Any, x: Tensor) -> Tensor:
    torch.manual_seed(1)
    y: Tensor = module(x)
    return y


def in_both_modes(module: nn.Module, x: Tensor) -> list[Tensor]:
    return [run(module.train(mode), x) for mode in (True, False)]


def same(module: nn.Module, other: nn.Module) -> bool:
    x = torch.randn(SHAPE)
    pairs = zip(in_both_modes(module, x), in_both_modes(other, x), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_it_is_the_same_object() -> None:
    module = net()
    plain, order = copy.deepcopy(module), [name for name, _ in module.named_parameters()]
    parameters = list(module.parameters())
    converted = bnfold.nn.convert(module, fuse_activations=True)
    assert converted is module
    assert isinstance(converted, fx.GraphModule) and isinstance(converted, Net)
    assert type(converted).__name__ == "Net" and repr(converted.block.two) == repr(plain.block.two)
    assert [name for name, _ in converted.named_parameters()] == order
    assert all(a is b for a, b in zip(converted.parameters(), parameters, strict=True))
    assert list(converted.state_dict()) == list(plain.state_dict())
    assert converted.classes is module.classes
    read = [node.target for node in converted.graph.nodes if node.op == "get_attr"]
    assert read == ["block.training", "scale"]
    assert same(converted, plain)
    y = torch.randn(SHAPE)
    assert torch.equal(converted.classify(y), plain.classify(y))


def test_its_own_train_is_called() -> None:
    module = bnfold.nn.convert(net(), fuse_activations=True)
    module.eval()
    module.train()
    assert module.block.one[1].training and not module.block.norm.training


def test_an_optimizer_goes_on_where_it_stopped() -> None:
    def steps(module: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
        torch.manual_seed(seed)
        for _ in range(3):
            optimizer.zero_grad()
            module(torch.randn(SHAPE)).square().sum().backward()
            optimizer.step()

    plain = net()
    first = torch.optim.SGD(plain.parameters(), 0.01, momentum=0.9)
    steps(plain, first, 2)
    converted = bnfold.nn.convert(copy.deepcopy(plain), fuse_activations=True)
    second = torch.optim.SGD(converted.parameters(), 0.01, momentum=0.9)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    steps(plain, first, 3)
    steps(converted, second, 3)
    for key, value in plain.state_dict().items():
        assert torch.allclose(converted.state_dict()[key], value, atol=1e-5)


def test_hooks_are_called_as_before() -> None:
    def hooked(module: Net) -> list[str]:
        calls: list[str] = []

        def note(name: str) -> Callable[..., None]:
            return lambda *_: calls.append(name)

        for path in ("", "block", "block.one", "block.norm", "head"):
            part = module.get_submodule(path)
            part.register_forward_hook(note(f"forward {path}"))
            part.register_forward_pre_hook(note(f"before {path}"))
            part.register_full_backward_hook(note(f"backward {path}"))
            part.register_full_backward_pre_hook(note(f"before backward {path}"))
            part.register_state_dict_post_hook(note(f"state {path}"))
            part.register_load_state_dict_post_hook(note(f"load {path}"))
        return calls

    def used(module: Net) -> None:
        run(module, torch.ones(SHAPE, requires_grad=True)).sum().backward()
        module.load_state_dict(module.state_dict())

    plain, module = net(), net()
    wanted, calls = hooked(plain), hooked(module)
    bnfold.nn.convert(module, fuse_activations=True)
    used(plain)
    used(module)
    assert calls == wanted and len(set(calls)) == 30


@pytest.mark.parametrize("watched", ["one.1", "one.2"])
def test_a_hook_before_backward_keeps_its_module(watched: str) -> None:
    module = Block()
    seen: list[Tensor] = []
    module.get_submodule(watched).register_full_backward_pre_hook(lambda _, dy: seen.append(dy[0]))
    bnfold.nn.convert(module, fuse_activations=True)
    module(torch.randn(SHAPE)).sum().backward()
    assert len(seen) == 1 and module.one[1].activation is None


def stored(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    found: nn.Module = torch.load(file, weights_only=False)
    return found


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "torch.save": stored,
    "twice": lambda module: pickle.loads(pickle.dumps(copy.deepcopy(module))),
}


@pytest.mark.parametrize("way", COPIES)
def test_copies_are_as_it_is(way: str) -> None:
    plain, module = net(), net()
    for each in (plain, module):
        each.block.one[1].eval()
    module = bnfold.nn.convert(module, fuse_activations=True)
    made = COPIES[way](module)
    assert [part.training for part in made.modules()] == [part.training for part in plain.modules()]
    assert [name for name, _ in made.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert type(made) is not type(module) and isinstance(made, Net) and made.classes == ["cat", "dog"]
    assert [str(node.target) for node in made.graph.nodes] == [
        str(node.target) for node in module.graph.nodes
    ]
    assert same(made, plain)
    if way != "copy":
        made.head.weight.data.zero_()
        assert module.head.weight.abs().sum() > 0
    bnfold.nn.revert(made)
    assert type(made) is Net


def test_parts_that_no_longer_fit_say_so() -> None:
    module = bnfold.nn.convert(net(), fuse_activations=True)
    plain, x = net(), torch.randn(SHAPE)
    assert torch.equal(module.block.one(x), plain.block.one(x))
    for part in (module.block, copy.deepcopy(module.block)):
        with pytest.raises(
            UsageError, match=r"^block cannot be called by itself: .* bnfold.nn.revert undoes"
        ):
            part(x)


def test_a_part_whose_activation_stands_outside_says_so() -> None:
    module = nn.Sequential(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)), nn.ReLU())
    bnfold.nn.convert(module, fuse_activations=True)
    assert module[0][1].activation == "relu"
    with pytest.raises(UsageError, match=r"^0 cannot be called by itself"):
        module[0](torch.randn(SHAPE))


def test_torch_takes_it() -> None:
    module, x = bnfold.nn.convert(net(), fuse_activations=True).eval(), torch.randn(SHAPE)
    y = module(x)
    assert torch.equal(torch.export.export(module, (x,)).module()(x), y)
    assert torch.equal(torch.compile(module, backend="eager")(x), y)
    assert torch.equal(torch.jit.trace(module, x)(x), y)
    assert torch.equal(fx.symbolic_trace(module)(x), y)
    assert torch.equal(torch.func.functional_call(module, dict(module.named_parameters()), (x,)), y)
    assert torch.equal(nn.DataParallel(module)(x), y)
    replica = module._replicate_for_data_parallel()
    replica.scale = module.scale  # as torch.nn.parallel.replicate does it
    assert torch.equal(replica(x), y) and replica._modules is not module._modules


def test_folded_it_can_be_scripted() -> None:
    module, x = bnfold.nn.convert(net(), fuse_activations=True).eval(), torch.randn(SHAPE)
    folded, report = bnfold.fold_module(module, x)
    assert (len(report.folded), len(report.kept)) == (3, 0)
    assert torch.allclose(torch.jit.script(folded)(x), module(x), atol=1e-5)


def test_converted_again_it_is_the_same() -> None:
    plain, module = net(), bnfold.nn.convert(net(), fuse_activations=True)
    assert bnfold.nn.convert(module, fuse_activations=True) is module
    assert same(module, plain)
    bnfold.nn.revert(module)
    assert type(module) is Net and same(module, plain)


def test_a_graph_module_is_one_already() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU())
    module = bnfold.nn.convert(fx.symbolic_trace(copy.deepcopy(plain)), fuse_activations=True)
    for made in (pickle.loads(pickle.dumps(module)), module):
        other = copy.deepcopy(plain)
        assert same(made, other)
        assert same(bnfold.nn.revert(made), other)


class Named(nn.Module):
    """Its batch norm has any name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        setattr(self, name, nn.BatchNorm2d(3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(getattr(self, self.name)(x))


@pytest.mark.parametrize("name", ["plain", "merged", "blank", "code_"])
def test_its_own_names_are_free(name: str) -> None:
    module, plain = Named(name), Named(name)
    bnfold.nn.convert(module, fuse_activations=True)
    assert same(module, plain) and module.get_submodule(name).activation == "relu"


def replaced() -> nn.Module:
    module = Block()
    module.forward = lambda x: x  # type: ignore[method-assign]
    return module


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: Named("graph"),
            r"^Named has attributes of its own that a torch.fx.GraphModule needs: graph\. ",
        ),
        (lambda: Named("meta"), r"^Named has attributes .* needs: meta\. Convert it"),
        (replaced, r"^Block has another forward than its class: .* Convert it without fuse_activations$"),
    ],
)
def test_what_cannot_be_a_graph_module_is_refused(make: Callable[[], nn.Module], said: str) -> None:
    module = make()
    kinds = [type(part) for part in module.modules()]
    with pytest.raises(UsageError, match=said):
        bnfold.nn.convert(module, fuse_activations=True)
    assert [type(part) for part in module.modules()] == kinds


def test_a_batch_norm_alone_has_nothing_to_merge() -> None:
    module = bnfold.nn.convert(nn.BatchNorm2d(3), fuse_activations=True)
    assert type(module) is bnfold.nn.BatchNorm2d
