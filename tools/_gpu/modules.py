"""What is measured: bnfold's batch norm and torch's modules on the same tensors, and a check of the first.

Everything here runs on any device, so that it can be tested without a GPU; only there it says nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch._functorch.config as functorch
from torch import Tensor, nn

import bnfold.nn
from bnfold.kernels.launch import Launch
from bnfold.nn import kernel_calls, reference, steps
from bnfold.nn.arguments import Arguments, Running
from tools._gpu.layers import PASSES, Case

EPS, MOMENTUM = 1e-5, 0.1
# Of ||found - wanted|| / ||wanted||: tensors of activations in their type, sums over a channel in float32.
BOUNDS = {torch.bfloat16: 5e-3, torch.float16: 1e-3, torch.float32: 1e-5}
SUM_BOUND = 1e-3


@dataclass
class Tensors:
    """x, residual and parameters want gradients; dy is y's."""

    x: Tensor
    residual: Tensor | None
    dy: Tensor
    weight: Tensor
    bias: Tensor

    @classmethod
    def drawn(cls, case: Case, device: str) -> Tensors:
        """Normal numbers; the means and scales of the channels differ."""
        layer, kind = case.layer, getattr(torch, case.type)
        shape = (case.batch, layer.channels, layer.height, layer.width)
        order = torch.channels_last if case.layout == "channels_last" else torch.contiguous_format

        def draw() -> Tensor:
            return torch.empty(shape, dtype=kind, device=device, memory_format=order).normal_()

        scale, mean = (torch.rand(1, layer.channels, 1, 1, dtype=kind, device=device) + 0.5 for _ in range(2))
        x = draw().mul_(scale).add_(mean)
        weight = torch.rand(layer.channels, device=device) + 0.5
        bias = torch.randn(layer.channels, device=device)
        residual = draw().requires_grad_() if case.fusion == "add_relu" else None
        return cls(x.requires_grad_(), residual, draw(), weight, bias)


class Chain(nn.Module):
    """torch's modules, called as torchvision's ResNet calls them: sum and ReLU in place."""

    def __init__(self, channels: int, fusion: str) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, EPS, MOMENTUM)
        self.relu = nn.ReLU(inplace=True) if fusion != "alone" else nn.Identity()

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        y: Tensor = self.norm(x)
        if residual is not None:
            y += residual
        found: Tensor = self.relu(y)
        return found


@dataclass
class Contender:
    """One way to run a case. norm: the batch norm in it."""

    name: str
    norm: nn.Module
    run: Callable[..., Tensor]
    tensors: Tensors

    def forward(self) -> Tensor:
        """The whole, in the mode that the batch norm is in."""
        given = [each for each in (self.tensors.x, self.tensors.residual) if each is not None]
        # Which backward runs is decided here too.
        with torch.backends.cudnn.flags(enabled=self.name != "native"):
            return self.run(*given)

    def work(self, which: str) -> Callable[[], object]:
        """What a pass does, to be called before the next pass is asked for: the module is in its mode."""
        self.norm.train(which != "eval")
        if which == "eval":
            return torch.no_grad()(self.forward)
        if which == "forward":
            return self.forward
        y = self.forward()
        return lambda: self.gradients(y)

    def gradients(self, y: Tensor) -> tuple[Tensor, ...]:
        """Of x, residual, weight and bias; y's graph is kept."""
        wanted = [self.tensors.x, self.tensors.residual, *self.norm.parameters()]
        inputs = [each for each in wanted if each is not None]
        return torch.autograd.grad(y, inputs, self.tensors.dy, retain_graph=True)


def contender(name: str, case: Case, tensors: Tensors) -> Contender:
    """bnfold, native or cudnn (torch without and with cuDNN), or compile (torch.compile of torch's).

    Its x and residual are leaves of its own, as autograd remembers the stream on which a leaf was first used.
    """
    leaves = (
        None if each is None else each.detach().requires_grad_() for each in (tensors.x, tensors.residual)
    )
    x, residual = leaves
    assert x is not None
    tensors = dataclasses.replace(tensors, x=x, residual=residual)
    channels = case.layer.channels
    if name == "bnfold":
        activation = None if case.fusion == "alone" else "relu"
        norm: Any = bnfold.nn.BatchNorm2d(channels, EPS, MOMENTUM, activation=activation)
        run: Callable[..., Tensor] = norm
    else:
        run = chain = Chain(channels, case.fusion)
        norm = chain.norm
        if name == "compile":
            functorch.donated_buffer = False  # backward runs many times
            run = torch.compile(chain, fullgraph=True, dynamic=False)
    norm.to(tensors.x.device)
    with torch.no_grad():
        for parameter, value in ((norm.weight, tensors.weight), (norm.bias, tensors.bias)):
            parameter.copy_(value)
    return Contender(name, norm, run, tensors)


def names(tensors: Tensors) -> list[str]:
    """Who takes part in eager mode: cuDNN only where torch picks it."""
    norm, x = nn.BatchNorm2d(tensors.x.shape[1], device=tensors.x.device), tensors.x
    given = (x, norm.weight, norm.bias, norm.running_mean, norm.running_var, True, EPS)
    picked = torch._C._select_batch_norm_backend(*given)
    cudnn = str(picked).endswith("Cudnn")
    return ["bnfold", *(["cudnn"] if cudnn else []), "native"]


@dataclass
class Watch:
    """launches: what ran on the kernels. reasons: why something did not."""

    launches: list[Launch] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)


@contextlib.contextmanager
def watched() -> Iterator[Watch]:
    """Sees every launch of a kernel, and every time that torch stands in for one."""
    watch, machine_of, fall_back = Watch(), kernel_calls.machine_of, steps.fall_back

    class Watched:
        def __init__(self, machine: Any) -> None:
            self.machine, self.limits = machine, machine.limits

        def launch(self, launch: Launch, *arguments: Any) -> None:
            self.machine.launch(launch, *arguments)
            watch.launches.append(launch)

    kernel_calls.machine_of = lambda x: Watched(machine_of(x))
    steps.fall_back = lambda error: watch.reasons.append(str(error))
    try:
        yield watch
    finally:
        kernel_calls.machine_of, steps.fall_back = machine_of, fall_back


def row(launches: Sequence[Launch]) -> dict[str, Any] | None:
    """What the launch table gave to a pass; None: no kernel ran."""
    if not launches:
        return None
    launch = launches[-1]
    shown = ("row", "kernel", "grid", "ranks", "cluster", "units", "window", "shared")
    return {name: getattr(launch, name) for name in shown}


def error(found: Tensor, wanted: Tensor) -> float:
    """||found - wanted|| / ||wanted||, in float64."""
    return float((found.double() - wanted).norm() / wanted.norm())


@torch.no_grad()
def wanted_of(tensors: Tensors, relu: bool) -> dict[str, Tensor]:
    """What bnfold's passes should give, in float64."""
    x, residual = tensors.x.double(), None if tensors.residual is None else tensors.residual.double()
    parameters = (tensors.weight.double(), tensors.bias.double())
    mean, var = torch.zeros_like(parameters[0]), torch.ones_like(parameters[0])
    given = Arguments(x, residual, *parameters, EPS, relu)
    y, batch_mean, invstd = reference.forward(given, Running(mean, var, None, MOMENTUM))
    dz = tensors.dy.double()
    if relu:
        dz *= y > 0
    dx, dweight, dbias = reference.backward(x, dz, parameters[0], batch_mean, invstd, False)
    found = {"y": y, "dx": dx, "dweight": dweight, "dbias": dbias, "running_mean": mean, "running_var": var}
    if residual is not None:
        found["dresidual"] = dz
    found["eval"] = reference.apply(given, mean, var)
    return found


def checked(case: Case, tensors: Tensors) -> dict[str, Any]:
    """bnfold's passes once: their errors, the rows of the launch table, and what is wrong, if anything."""
    ours = contender("bnfold", case, tensors)
    poison = [torch.full_like(tensors.x, torch.nan) for _ in range(3)]
    del poison  # so that memory that a kernel leaves as it is holds nothing right by chance
    rows: dict[str, Any] = {}
    reasons: list[str] = []

    def seen(which: str) -> Any:
        work = ours.work(which)
        with watched() as watch:
            result = work()
        rows[which] = row(watch.launches)
        reasons.extend(watch.reasons)
        return result

    # Backward last: what it starts from moves the running statistics once more.
    found: dict[str, Tensor] = {"y": seen("forward").detach(), "eval": seen("eval")}
    found.update((key, getattr(ours.norm, key).clone()) for key in ("running_mean", "running_var"))
    dx, *dresidual, dweight, dbias = seen("backward")
    found.update({"dx": dx, "dweight": dweight, "dbias": dbias})
    found.update(("dresidual", each) for each in dresidual)
    wanted = wanted_of(tensors, case.fusion != "alone")
    errors = {key: error(found[key], wanted[key]) for key in wanted}
    bound = BOUNDS[tensors.x.dtype]
    bounds = {key: SUM_BOUND if value.dim() == 1 else bound for key, value in wanted.items()}
    wrong = [f"{key} is off by {errors[key]:.1e}" for key in wanted if not errors[key] <= bounds[key]]
    wrong += [f"{which} ran on no kernel" for which in PASSES if rows[which] is None]
    errors = {key: float(f"{value:.2e}") for key, value in errors.items()}
    return {"errors": errors, "rows": rows, "failure": "; ".join(dict.fromkeys([*wrong, *reasons]))}


def memory(case: Case, tensors: Tensors, name: str) -> dict[str, int]:
    """Bytes that training holds: saved for backward, grown by forward, and the peak with backward.

    Parameters and buffers are left out. `saved` counts each tensor once that autograd keeps, also y, which
    torch's ReLU keeps and which lives on anyway as the next layer's input; `grown` is what is allocated more
    after forward than before, y included.
    """
    ours = contender(name, case, tensors)
    own = (*ours.norm.parameters(), *ours.norm.buffers())
    known = {each.untyped_storage().data_ptr() for each in own}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    cuda = tensors.x.is_cuda
    ours.forward()  # whatever is allocated once
    before = _allocated(cuda)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = ours.forward()
    grown = _allocated(cuda) - before
    gradients = ours.gradients(y)
    peak = torch.cuda.max_memory_allocated() - before if cuda else 0
    del gradients
    return {"saved": sum(kept.values()), "grown": grown, "peak": peak}


def _allocated(cuda: bool) -> int:
    if not cuda:
        return 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()
