"""The modules on their kernels, which run on the CPU here: as torch's in all that can be seen."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import parametrize

import bnfold.nn
from bnfold.nn import steps
from bnfold.nn.arguments import Arguments
from tests.kernels.host import unavailable
from tests.kernels.machine import HostMachine

REASON = unavailable()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")

SHAPES = {"1d": (6, 8, 7), "1d rows": (9, 8), "2d": (4, 8, 5, 6), "3d": (2, 8, 3, 4, 2)}
CLASSES = {"1d": "BatchNorm1d", "1d rows": "BatchNorm1d", "2d": "BatchNorm2d", "3d": "BatchNorm3d"}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no affine": {"affine": False},
    "no statistics": {"track_running_stats": False},
    "average": {"momentum": None},
    "eps": {"eps": 0.1, "momentum": 0.3},
}


def pair(kind: str, activation: str | None = None, **options: Any) -> tuple[nn.Module, nn.Module]:
    ours = getattr(bnfold.nn, CLASSES[kind])(8, activation=activation, **options)
    theirs = getattr(nn, CLASSES[kind])(8, **options)
    if ours.weight is not None:
        nn.init.uniform_(ours.weight, -0.5, 1.5)
        nn.init.normal_(ours.bias)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def near(a: Tensor | None, b: Tensor | None) -> None:
    assert a is not None and b is not None
    torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-5)


def gradients(module: nn.Module) -> list[Tensor]:
    return [each.grad for each in module.parameters() if each.grad is not None]


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("options", OPTIONS)
def test_a_drop_in_for_torch(machine: HostMachine, kind: str, options: str) -> None:
    torch.manual_seed(0)
    ours, theirs = pair(kind, **OPTIONS[options])
    for training in (True, True, False):
        ours.train(training)
        theirs.train(training)
        x = torch.randn(SHAPES[kind]).mul(3).add(1)
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        y, z = ours(a), theirs(b)
        near(y, z)
        direction = torch.randn_like(x)
        y.backward(direction)
        z.backward(direction)
        near(a.grad, b.grad)
        for mine, other in zip(gradients(ours), gradients(theirs), strict=True):
            near(mine, other)
        for name, buffer in theirs.named_buffers():
            near(dict(ours.named_buffers())[name], buffer)
        assert ours.num_batches_tracked == theirs.num_batches_tracked
    assert {launch.source for launch in machine.launches} >= {"forward.cuh", "backward.cuh"}
    fresh = type(theirs)(8, **OPTIONS[options])
    fresh.load_state_dict(ours.state_dict())
    assert list(fresh.state_dict()) == list(ours.state_dict())
    near(copy.deepcopy(ours)(x), ours(x))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("residual", ["none", "full", "broadcast"])
@pytest.mark.parametrize("activation", [None, "relu"])
def test_a_sum_and_an_activation_follow(
    machine: HostMachine, training: bool, residual: str, activation: str | None
) -> None:
    torch.manual_seed(0)
    ours, theirs = pair("2d", activation)
    ours.train(training)
    theirs.train(training)
    x = torch.randn(SHAPES["2d"], requires_grad=True)
    r = torch.randn(SHAPES["2d"] if residual == "full" else (1, 8, 1, 6), requires_grad=True)
    inputs = (x,) if residual == "none" else (x, r)
    y, z = ours(*inputs), theirs(x) + (0 if residual == "none" else r)
    z = z.relu() if activation else z
    near(y, z)
    direction = torch.randn_like(y)
    for mine, other in zip(
        torch.autograd.grad(y, (*inputs, *ours.parameters()), direction),
        torch.autograd.grad(z, (*inputs, *theirs.parameters()), direction),
        strict=True,
    ):
        near(mine, other)
    assert len(machine.launches) == 2  # one forward, one backward: sum and activation are within


ORDERS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "every second channel": lambda x: x.repeat_interleave(2, 1)[:, ::2],
    "part of a batch, channels last": lambda x: torch.cat([x, x]).contiguous(
        memory_format=torch.channels_last
    )[: x.shape[0]],
    "expanded": lambda x: x[:1].expand_as(x),
}


@pytest.mark.parametrize("order", ORDERS)
def test_orders_of_dimensions(machine: HostMachine, order: str) -> None:
    torch.manual_seed(0)
    ours, theirs = pair("2d", "relu")
    x = ORDERS[order](torch.randn(SHAPES["2d"]))
    a, b = x.detach().requires_grad_(), x.detach().clone().requires_grad_()
    r = torch.randn(SHAPES["2d"])
    y, z = ours(a, r), (theirs(b) + r).relu()
    near(y, z)
    assert y.is_contiguous(memory_format=torch.channels_last) == order.endswith("channels last")
    direction = torch.randn(SHAPES["2d"])
    y.backward(direction)
    z.backward(direction)
    near(a.grad, b.grad)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("parameters", ["float32", "same"])
def test_half_precision(machine: HostMachine, kind: torch.dtype, parameters: str) -> None:
    torch.manual_seed(0)
    ours, theirs = pair("2d")
    x = torch.randn(SHAPES["2d"], dtype=kind, requires_grad=True)
    if parameters == "same":
        ours.to(kind)
    y = ours(x)
    assert y.dtype == kind
    assert ours.running_mean.dtype == (kind if parameters == "same" else torch.float32)
    wide = x.detach().float().requires_grad_()
    wanted = theirs(wide)
    room = {torch.float16: 4e-3, torch.bfloat16: 4e-2}[kind]
    torch.testing.assert_close(y.float(), wanted, rtol=room, atol=room)
    direction = torch.randn(SHAPES["2d"], dtype=kind)
    y.backward(direction)
    wanted.backward(direction.float())
    torch.testing.assert_close(x.grad.float(), wide.grad, rtol=room, atol=room)
    for mine, other in zip(gradients(ours), gradients(theirs), strict=True):
        assert mine.dtype == (kind if parameters == "same" else torch.float32)
        torch.testing.assert_close(mine.float(), other, rtol=room, atol=8 * room)
    torch.testing.assert_close(ours.running_var.float(), theirs.running_var, rtol=room, atol=room)


def test_autocast(machine: HostMachine) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), bnfold.nn.BatchNorm2d(8, activation="relu"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = net(torch.randn(2, 3, 8, 8))
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert net[1].weight.grad.dtype == torch.float32
    assert "bfloat16" in machine.launches[0].kernel


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", [None, "relu"])
def test_it_compiles_whole(machine: HostMachine, training: bool, activation: str | None) -> None:
    torch.manual_seed(0)
    ours, _ = pair("2d", activation)
    ours.train(training)
    other = copy.deepcopy(ours)
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    compiled = torch.compile(ours, backend=backend, fullgraph=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            x = torch.randn(SHAPES["2d"])
            r = torch.randn(SHAPES["2d"])
            a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
            y, z = compiled(a, r), other(b, r)
            assert torch.equal(y, z)
            direction = torch.randn_like(y)
            y.backward(direction)
            z.backward(direction)
            assert torch.equal(a.grad, b.grad)
    for mine, wanted in zip(gradients(ours), gradients(other), strict=True):
        assert torch.equal(mine, wanted)
    for name, buffer in other.named_buffers():
        assert torch.equal(dict(ours.named_buffers())[name], buffer)
    called = {str(node.target) for node in graphs[0].graph.nodes if node.op == "call_function"}
    assert any("bnfold.batch_norm" in each for each in called), called


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own use of it, in jvp
def test_what_kernels_do_not_take_is_torchs(machine: HostMachine) -> None:
    norm = bnfold.nn.BatchNorm2d(8)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        norm(torch.randn(1, 8, 1, 1))
    assert norm(torch.randn(0, 8, 3, 3)).shape == (0, 8, 3, 3)
    assert torch.equal(norm.running_var, torch.ones(8))
    x = torch.randn(4, 8, 3, 3)
    assert bnfold.nn.BatchNorm2d(8, dtype=torch.float64)(x.double()).dtype == torch.float64
    assert norm.double()(x.double()).dtype == torch.float64
    norm.float().eval()
    torch.testing.assert_close(torch.func.vmap(norm)(x[None]), norm(x)[None])
    theirs = nn.BatchNorm2d(8).eval()
    theirs.load_state_dict(norm.state_dict())
    ours, wanted = (torch.func.jvp(each, (x,), (x,))[1] for each in (norm, theirs))
    assert torch.equal(ours, wanted)
    mixed = norm(x, torch.randn(4, 8, 3, 3, dtype=torch.float64))
    assert mixed.dtype == torch.float64
    # Only evaluation of float32 without a residual's other type is for the kernels.
    assert {launch.source for launch in machine.launches} == {"apply.cuh"}


def test_autograd_sees_that_buffers_change(machine: HostMachine) -> None:
    norm, _ = pair("2d")
    versions = [buffer._version for buffer in norm.buffers()]
    norm(torch.randn(SHAPES["2d"]))
    assert [buffer._version for buffer in norm.buffers()] == [version + 1 for version in versions]


def test_training_follows_torch_step_by_step(machine: HostMachine) -> None:
    torch.manual_seed(0)
    theirs = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3)),
        *(nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16, 4)),
    )
    ours = copy.deepcopy(theirs)
    ours = bnfold.nn.convert(ours, fuse_activations=True)
    x, labels = torch.randn(32, 1, 7, 7), torch.randint(0, 4, (32,))
    curves = []
    for net in (ours, theirs):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        curve = []
        for _ in range(12):
            loss = nn.functional.cross_entropy(net(x), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            curve.append(loss.item())
        curves.append(torch.tensor(curve))
    assert curves[0][-1] < curves[0][0] / 4
    torch.testing.assert_close(curves[0], curves[1], rtol=1e-3, atol=1e-5)
    assert len(machine.launches) == 12 * 4


def test_steps_of_types_that_have_no_kernels_are_the_twins(machine: HostMachine) -> None:
    """SyncBatchNorm calls steps with whatever it is given."""
    x = torch.randn(SHAPES["2d"])
    weight, bias, zeros, ones = torch.rand(8), torch.rand(8), torch.zeros(8), torch.ones(8)
    wanted = torch.nn.functional.batch_norm(x, zeros, ones, weight, bias)
    double = [each.double() for each in (weight, bias, zeros, ones)]
    y, _ = steps.evaluate(Arguments(x.double(), None, *double[:2]), *double[2:], False)
    torch.testing.assert_close(y, wanted.double(), rtol=1e-5, atol=1e-5)
    y, _ = steps.evaluate(Arguments(x, None, *double[:2]), zeros, ones, False)
    torch.testing.assert_close(y, wanted)
    y, _ = steps.evaluate(Arguments(x.bfloat16(), None, weight, bias.bfloat16()), zeros, ones, False)
    torch.testing.assert_close(y.float(), wanted, rtol=4e-2, atol=4e-2)
    assert steps.moments_of(x.double()).mean.dtype == torch.float64
    assert not machine.launches


STRANGE: dict[str, Callable[[Any], None]] = {
    "statistics no longer tracked": lambda norm: setattr(norm, "track_running_stats", False),
    "strided weight": lambda norm: setattr(norm, "weight", nn.Parameter(torch.arange(16.0)[::2])),
    "strided statistics": lambda norm: setattr(norm, "running_var", torch.ones(8, 2)[:, 0]),
    "batches in float": lambda norm: setattr(norm, "num_batches_tracked", torch.tensor(0.0)),
    "no count of batches": lambda norm: setattr(norm, "num_batches_tracked", None),
    "bias alone": lambda norm: setattr(norm, "weight", None),
    "parametrized weight": lambda norm: parametrize.register_parametrization(norm, "weight", nn.Softplus()),
    "weight as a plain attribute": lambda norm: plain_attribute(norm, torch.linspace(-1, 1, 8)),
}


def plain_attribute(norm: Any, value: Tensor) -> None:
    del norm.weight
    norm.weight = value


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("change", STRANGE)
def test_modules_that_were_changed(machine: HostMachine, change: str, training: bool) -> None:
    torch.manual_seed(0)
    ours, theirs = pair("2d")
    for module in (ours, theirs):
        STRANGE[change](module.train(training))
    x = torch.randn(SHAPES["2d"])
    near(ours(x), theirs(x))
    for name, buffer in theirs.named_buffers():
        near(dict(ours.named_buffers())[name], buffer)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("channels", [4, 16])
def test_another_number_of_channels(machine: HostMachine, channels: int, training: bool) -> None:
    norm = bnfold.nn.BatchNorm2d(channels).train(training)
    with pytest.raises(RuntimeError, match=f"should contain 8 elements not {channels}"):
        norm(torch.randn(SHAPES["2d"]))
    assert not machine.launches


def test_no_eps_is_refused_as_by_torch(machine: HostMachine) -> None:
    ours, theirs = pair("2d", eps=0.0)
    x = torch.ones(SHAPES["2d"])
    for module in (ours.eval(), theirs.eval()):
        assert torch.isfinite(module(x)).all()
    try:
        wanted = theirs.train()(x)
    except ValueError as error:  # from some release on
        with pytest.raises(ValueError, match=str(error)):
            ours.train()(x)
    else:
        assert torch.equal(ours.train()(x), wanted)


def test_traced_and_exported_graphs_hold_torchs_operators(machine: HostMachine) -> None:
    torch.manual_seed(0)
    ours, theirs = pair("2d", "relu")
    ours.eval()
    theirs.eval()
    x, other = torch.randn(SHAPES["2d"]), torch.randn(SHAPES["2d"])
    graphs = [
        torch.jit.trace(ours, x),
        make_fx(ours)(x),
        *(torch.export.export(ours, (x,), strict=strict).module() for strict in (True, False)),
    ]
    for graph in graphs:
        assert "bnfold.batch_norm" not in str(graph.graph)
        near(graph(other), theirs(other).relu())


def test_tensors_of_other_classes(machine: HostMachine) -> None:
    class Own(Tensor):
        pass

    norm = bnfold.nn.BatchNorm2d(8)
    assert type(norm(torch.randn(SHAPES["2d"]).as_subclass(Own))) is Own
    with FakeTensorMode():
        assert bnfold.nn.BatchNorm2d(8)(torch.empty(SHAPES["2d"])).shape == SHAPES["2d"]
    assert not machine.launches
    x = torch.randn(SHAPES["2d"])
    assert torch.equal(norm(torch._neg_view(x)), norm(-x))
