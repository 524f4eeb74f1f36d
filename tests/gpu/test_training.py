"""The modules on a GPU, beside torch's: autograd, autocast, torch.compile, CUDA graphs, streams."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import bnfold.nn
from tests.gpu.device import CUDA, LIMITS, MARKS, Case, limited, ordered

pytestmark = MARKS
ROOT = Path(__file__).resolve().parents[2]
EXACT = 2e-5  # of float32
# With a ReLU: one value that took its other side, where two roundings differ, weighs 2e-3.
ROOM = {torch.float32: 5e-3, torch.float16: 5e-3, torch.bfloat16: 8e-3}


class Chain(nn.Module):
    """torch's modules, as `bnfold.nn.BatchNorm2d(activation="relu")` has them in one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, device=CUDA)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        y = self.norm(x)
        return torch.relu(y if residual is None else y + residual)


def pair(channels: int) -> tuple[nn.Module, Chain]:
    """bnfold's module and torch's, with the same parameters."""
    theirs = Chain(channels)
    nn.init.uniform_(theirs.norm.weight, 0.5, 1.5)
    nn.init.normal_(theirs.norm.bias)
    ours = bnfold.nn.BatchNorm2d(channels, activation="relu", device=CUDA)
    ours.load_state_dict(theirs.norm.state_dict())
    return ours, theirs


def step(module: nn.Module, case: Case, residual: bool = True) -> dict[str, Tensor]:
    """One training step: y, gradients, and buffers after it."""
    x, r = (each.detach().clone().requires_grad_() for each in (case.x, case.residual))
    module.zero_grad()
    y = module(x, r) if residual else module(x)
    y.backward(case.dy)
    found = {"y": y.detach(), "dx": x.grad, "dresidual": r.grad}
    found.update((name.rpartition(".")[2], each.grad) for name, each in module.named_parameters())
    found.update((name.rpartition(".")[2], each.clone()) for name, each in module.named_buffers())
    return {name: each for name, each in found.items() if each is not None}


def near(ours: dict[str, Tensor], theirs: dict[str, Tensor], room: float = EXACT) -> None:
    """All of it, in the norm; test_gpu.py looks at each value."""
    assert ours.keys() == theirs.keys()
    for name, wanted in theirs.items():
        off = (ours[name].double() - wanted.double()).norm() / wanted.double().norm().clamp(min=1e-6)
        assert off <= room, f"{name}: {off:.1e}"


def wide(case: Case) -> Case:
    """The same numbers in float32."""
    return Case(case.x.float(), case.residual.float(), case.dy.float(), case.weight, case.bias)


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("kind", ROOM, ids=str)
def test_as_torch(kind: torch.dtype, last: bool, limits: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device = limited(monkeypatch, LIMITS[limits])
    ours, theirs = pair(64)
    for shape in ((16, 64, 28, 28), (3, 64, 7, 7)):
        case = Case.drawn(shape, last, kind)
        for residual in (False, True):
            found = step(ours, case, residual)
            assert found["y"].dtype == found["dx"].dtype == kind
            near(found, step(theirs, wide(case), residual), ROOM[kind])
    assert ours.num_batches_tracked.item() == 4
    ours.eval()
    theirs.eval()
    near(step(ours, case), step(theirs, wide(case)), ROOM[kind])
    assert len(device.launches) == 10


@pytest.mark.parametrize(
    "options",
    [{"affine": False}, {"track_running_stats": False}, {"momentum": None}, {"eps": 0.1, "momentum": 0.3}],
    ids=str,
)
def test_options(options: dict[str, Any]) -> None:
    ours, theirs = (kind(24, device=CUDA, **options) for kind in (bnfold.nn.BatchNorm2d, nn.BatchNorm2d))
    case = Case.drawn((6, 24, 9, 9), True)
    for _ in range(3):
        near(step(ours, case, False), step(theirs, case, False))
    ours.eval()
    theirs.eval()
    near(step(ours, case, False), step(theirs, case, False))


@pytest.mark.parametrize(("kind", "shape"), [("1d", (32, 24)), ("1d", (8, 24, 50)), ("3d", (2, 24, 4, 5, 6))])
def test_other_ranks(kind: str, shape: tuple[int, ...]) -> None:
    ours, theirs = (getattr(home, f"BatchNorm{kind}")(24, device=CUDA) for home in (bnfold.nn, nn))
    case = Case.drawn(shape)
    near(step(ours, case, False), step(theirs, case, False))


def test_what_the_kernels_do_not_take() -> None:
    ours, theirs = (
        kind(4, device=CUDA, dtype=torch.float64) for kind in (bnfold.nn.BatchNorm2d, nn.BatchNorm2d)
    )
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64, device=CUDA)
    assert torch.equal(ours(x), theirs(x))
    assert bnfold.nn.BatchNorm2d(4, device=CUDA)(torch.empty(0, 4, 3, 3, device=CUDA)).shape == (0, 4, 3, 3)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        bnfold.nn.BatchNorm2d(4, device=CUDA)(torch.randn(1, 4, 1, 1, device=CUDA))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16], ids=str)
def test_autocast(kind: torch.dtype) -> None:
    conv = nn.Conv2d(8, 16, 3, device=CUDA).to(memory_format=torch.channels_last)
    ours, theirs = pair(16)
    x = ordered(torch.randn(4, 8, 20, 20, device=CUDA), True)
    found = []
    for module in (ours, theirs):
        conv.zero_grad()
        with torch.autocast(CUDA, kind):
            y = module(conv(x))
        assert y.dtype == kind
        assert y.is_contiguous(memory_format=torch.channels_last)
        y.float().square().mean().backward()
        found.append({"y": y.detach(), "conv": conv.weight.grad.clone()})
    near(*found, ROOM[kind])


@pytest.mark.parametrize("residual", [False, True])
def test_compiled_whole(residual: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    device = limited(monkeypatch, {})
    eager, _ = pair(32)
    compiled = copy.deepcopy(eager)
    whole = torch.compile(compiled, fullgraph=True)
    case = Case.drawn((8, 32, 14, 14), True, torch.bfloat16)
    for _ in range(2):
        wanted = step(eager, case, residual)
        before = len(device.launches)
        near(step(whole, case, residual), wanted)
        assert [each.source for each in device.launches[before:]] == ["forward.cuh", "backward.cuh"]
    eager.eval()
    compiled.eval()
    with torch.no_grad():
        given = (case.x, case.residual) if residual else (case.x,)
        assert torch.allclose(whole(*given), eager(*given))


@pytest.mark.parametrize("limits", ["as it is", "no clusters"])
def test_a_captured_graph(limits: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device = limited(monkeypatch, LIMITS[limits])
    eager, _ = pair(64)
    captured = copy.deepcopy(eager)
    case = Case.drawn((4, 64, 14, 14), True, torch.bfloat16)
    x, r = case.x.clone().requires_grad_(), case.residual.clone().requires_grad_()
    wanted = [x, r, *captured.parameters()]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.autograd.grad(captured(x, r), wanted, case.dy)  # compiles and loads the kernels
    torch.cuda.current_stream().wait_stream(stream)
    captured.load_state_dict(eager.state_dict())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = captured(x, r)
        gradients = torch.autograd.grad(y, wanted, case.dy)
    captured.load_state_dict(eager.state_dict())
    for seed in range(3):
        torch.manual_seed(seed)
        with torch.no_grad():
            x.normal_()
            r.normal_()
        graph.replay()
        again = step(eager, Case(x, r, case.dy, case.weight, case.bias))
        assert torch.equal(y, again["y"])
        assert torch.equal(gradients[0], again["dx"])
        assert torch.equal(gradients[1], again["dresidual"])
        assert torch.equal(captured.running_var, eager.running_var)
    assert captured.num_batches_tracked.item() == 3
    assert any(launch.cooperative for launch in device.launches) == (limits == "no clusters")


def test_nothing_waits_for_the_device() -> None:
    case = Case.drawn((8, 32, 14, 14), True, torch.bfloat16)
    modules = [pair(32)[0], bnfold.nn.BatchNorm2d(32, momentum=None, device=CUDA)]
    for module in modules:
        step(module, case, False)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for module in modules:
            step(module, case, residual=module is modules[0])
            module.eval()
            step(module, case, False)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_gradient_checkpointing() -> None:
    plain, _ = pair(32)
    again = copy.deepcopy(plain)
    case = Case.drawn((8, 32, 14, 14), True, torch.float16)
    wanted = step(plain, case)
    x, r = case.x.clone().requires_grad_(), case.residual.clone().requires_grad_()
    checkpoint(again, x, r, use_reentrant=False).backward(case.dy)
    assert torch.equal(x.grad, wanted["dx"])
    assert torch.equal(r.grad, wanted["dresidual"])
    assert torch.equal(again.weight.grad, wanted["weight"])
    assert again.num_batches_tracked.item() == 2  # forward ran twice, as with torch's module


def test_second_derivatives() -> None:
    ours, theirs = pair(6)
    case = Case.drawn((4, 6, 5, 5))
    found = []
    for module, exact in ((ours, False), (theirs.double(), True)):
        x, r, dy = (each.double() if exact else each.clone() for each in (case.x, case.residual, case.dy))
        x.requires_grad_()
        (dx,) = torch.autograd.grad(module(x, r), x, dy, create_graph=True)
        (second,) = torch.autograd.grad(dx.square().sum(), x)
        found.append(second.double())
    assert torch.allclose(*found, rtol=1e-3, atol=1e-4)


def test_tensors_that_are_not_contiguous() -> None:
    ours, theirs = pair(16)
    base = torch.randn(6, 32, 12, 10, device=CUDA)
    last = ordered(base, True)
    views = (base[:, ::2], base[:, :16].transpose(2, 3), base[::2, 3:19], last[:, :16], base[:, :16, ::2, 1:])
    for x in views:
        residual, dy = torch.randn_like(x), torch.ones((), device=CUDA).expand_as(x)
        found = []
        for module in (ours, theirs):
            x_here = x.detach().requires_grad_()
            y = module(x_here, residual)
            y.backward(dy)
            found.append({"y": y.detach(), "dx": x_here.grad})
        near(*found, ROOM[torch.float32])


def test_fewer_bytes_are_saved() -> None:
    case = Case.drawn((16, 64, 28, 28), True, torch.bfloat16)

    def saved(module: nn.Module) -> int:
        kept = {}

        def keep(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        x = case.x.clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            y = module(x, case.residual.clone().requires_grad_())
        del y
        return sum(kept.values())

    ours, theirs = pair(64)
    assert saved(ours) < 0.6 * saved(theirs)


# In processes of their own: one needs a thread that has not touched the device, one may never end.


def run(code: str, seconds: float) -> str:
    """What a program prints."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        timeout=seconds,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


FIRST_BACKWARD = """
import warnings, torch, bnfold.nn
warnings.filterwarnings("error", "bnfold.nn runs on torch")
norm = bnfold.nn.BatchNorm2d(16, device="cuda")
x = torch.randn(4, 16, 7, 7, device="cuda", requires_grad=True)
y, dy = norm(x), torch.randn(4, 16, 7, 7, device="cuda")
spare = torch.empty_like(x); del spare  # so that backward allocates without asking the device
y.backward(dy)
print(x.grad.isfinite().all().item())
"""


def test_the_first_thing_that_a_backward_thread_does() -> None:
    assert run(FIRST_BACKWARD, 100).split() == ["True"]


TWO_STREAMS = """
import warnings, torch, bnfold.nn
from bnfold.nn import kernel_calls as kernels
warnings.filterwarnings("error", "bnfold.nn runs on torch")
from tools._gpu.preflight import Limited
device = Limited({})
kernels.machine_of = lambda x: device
streams = [torch.cuda.Stream() for _ in range(2)]
modules = [bnfold.nn.BatchNorm2d(64, device="cuda") for _ in streams]
torch.manual_seed(0)
xs = [torch.randn(64, 64, 56, 56, device="cuda").bfloat16().contiguous(memory_format=torch.channels_last)
      .requires_grad_() for _ in streams]
dy = torch.randn_like(xs[0])
wanted = [torch.autograd.grad(module(x), x, dy)[0] for module, x in zip(modules, xs)]
torch.cuda.synchronize()
found = [None, None]
for _ in range(50):
    for k, stream in enumerate(streams):
        with torch.cuda.stream(stream):
            found[k] = torch.autograd.grad(modules[k](xs[k]), xs[k], dy)[0]
torch.cuda.synchronize()
print(all(torch.equal(a, b) for a, b in zip(found, wanted)))
print(any(launch.cooperative for launch in device.launches))
"""


def test_cooperative_launches_on_two_streams() -> None:
    assert run(TWO_STREAMS, 100).split() == ["True", "True"]


GRAPHS = """
import warnings, torch, bnfold.nn
from bnfold.nn import kernel_calls as kernels
warnings.filterwarnings("error", "bnfold.nn runs on torch")
from tools._gpu.preflight import Limited
device = Limited({"clusters": 1})
kernels.machine_of = lambda x: device
torch.manual_seed(0)
sizes = (64, 32, 64)
xs = [torch.randn(64, n, 56, 56, device="cuda").bfloat16().contiguous(memory_format=torch.channels_last)
      for n in sizes]
modules = [bnfold.nn.BatchNorm2d(n, device="cuda") for n in sizes]
with torch.no_grad():
    mailbox_of = kernels.mailbox_of
    if EARLY:  # kernels are loaded, and no words were ever given
        kernels.mailbox_of = lambda x, size, *rest: (x.new_empty(size, dtype=torch.uint8),
                                                     x.new_zeros(1024, dtype=torch.int32))
    wanted = [module(x) for module, x in zip(modules, xs)]
    kernels.mailbox_of = mailbox_of
    torch.cuda.synchronize()
    graphs, found = [torch.cuda.CUDAGraph() for _ in range(2)], []
    for graph, module, x in zip(graphs, modules, xs):
        with torch.cuda.graph(graph):
            found.append(module(x))
    streams = [torch.cuda.Stream() for _ in range(3)]
    torch.cuda.synchronize()
    same = True
    for turn in range(50):
        for graph, stream in zip(graphs, streams):
            with torch.cuda.stream(stream):
                graph.replay()
        with torch.cuda.stream(streams[2]):
            eager = modules[2](xs[2])
        if turn % 10 == 9:
            torch.cuda.synchronize()
            same &= all(torch.equal(a, b) for a, b in zip([*found, eager], wanted))
print(same, device.rows() == {"cooperative grid"})
"""


@pytest.mark.parametrize("early", [False, True])
def test_graphs_beside_each_other_and_eager_work(early: bool) -> None:
    """early: captured before the words of any stream were given, which is when a graph zeroes its own."""
    assert run(GRAPHS.replace("EARLY", str(early)), 100).split() == ["True", "True"]
