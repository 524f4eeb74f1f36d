"""The modules: torch's batch norms, each followed by a sum and an activation if asked.

They are subclasses of torch's (SyncBatchNorm of `_BatchNorm` alone: see there), with the same parameters,
buffers and state_dict, so that whatever looks for a batch norm (this package's folds, torch's own tools, a
weight decay filter) finds one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 (as torch's own code calls it)
from torch import Tensor, fx, nn

from bnfold.errors import UsageError
from bnfold.nn import functional
from bnfold.nn.arguments import Arguments, Running
from bnfold.nn.kernel_calls import Ready
from bnfold.nn.kinds import Decisions

__all__ = ["ACTIVATIONS", "BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "Fused", "add_activate"]

ACTIVATIONS = (None, "relu")


class Decision(NamedTuple):
    """What a module's settings and the kinds of its tensors decide of a call on the kernels.

    own: whether the statistics are the batch's. tracked: whether running ones are used. counted, averaged:
    whether the batch is counted by the kernel, and before, since running statistics are plain averages.
    momentum: for `Running`. wanted: whether a tensor requires a gradient. ready: the calls, None where a
    tensor has to be copied first, or under torch.compile.
    """

    own: bool
    tracked: bool
    counted: bool
    averaged: bool
    momentum: float
    wanted: bool
    ready: Ready | None


class Fused(nn.modules.batchnorm._BatchNorm):
    """What this package's batch norms add to torch's.

    Args:
        num_features: channels C.
        eps: added to the variance.
        momentum: weight of the new batch in the running statistics; None: their plain average over batches.
        affine: whether there are a learnable scale and shift.
        track_running_stats: whether running statistics are kept; without them each batch has its own, in eval
            mode too.
        device: of parameters and buffers.
        dtype: of parameters and buffers.
        activation: what follows: None or "relu".
        options: what else the installed torch takes (`bias`, from 2.13 on).

    Raises:
        UsageError: an activation that is not known.
    """

    activation: str | None = None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        activation: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype, **options
        )
        if activation not in ACTIVATIONS:
            valid = ", ".join(map(repr, ACTIVATIONS))
            raise UsageError(f"activation={activation!r} is unknown. Note: valid choices are {valid}")
        self.activation = activation

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """`activation(batch_norm(input) + residual)`.

        Args:
            input: (N, C, ...), as the class says.
            residual: what is added before the activation, of the same shape (or one that broadcasts with it).

        Raises:
            ValueError: the input has another rank, or one value for each channel in training mode.
            UsageError: the residual does not broadcast with the input.
        """
        if isinstance(input, fx.Proxy):  # to torch.fx.symbolic_trace, a leaf as torch's
            return _call_of(self, input, residual)
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        y = None
        if residual is None:
            y = self._fused(input, None)
        elif isinstance(residual, Tensor):
            if residual.shape == input.shape:
                y = self._fused(input, residual)
            elif _fits(residual.shape, input.shape):
                y = self._fused(input, residual.expand_as(input))
            elif not _broadcast(residual.shape, input.shape):
                raise UsageError(
                    f"{type(self).__name__}: the residual of shape {list(residual.shape)} does not fit the "
                    f"input of shape {list(input.shape)}"
                )
        return add_activate(self, super().forward(input), residual) if y is None else y

    def _fused(self, x: Tensor, residual: Tensor | None) -> Tensor | None:
        """The whole on the kernels; None where they do not take it."""
        compiling = torch.compiler.is_compiling()
        weight, bias, mean, var, batches = self._tensors(compiling)
        tensors = (x, residual, weight, bias, mean, var, batches)
        decision = self._decided(*tensors) if compiling else self._decision(tensors)
        if decision is None:
            return None
        own, tracked, counted, averaged, momentum, wanted, ready = decision
        if averaged:
            batches.add_(1)  # type: ignore[union-attr]
        given = Arguments(x, residual, weight, bias, self.eps, self.activation == "relu")
        kept = (mean, var) if tracked else (None, None)
        running = Running(*kept, batches if counted else None, momentum)
        if ready is None:
            return functional.batch_norm(given, running, own)
        return functional.eager(given, running, own, ready, wanted)

    def _decision(self, tensors: Sequence[Any]) -> Decision | None:
        """As `_decided`, which is asked once for tensors of the same kinds."""
        decisions: Decisions[Decision] | None = self.__dict__.get("_decisions")
        if decisions is None:
            decisions = self.__dict__["_decisions"] = Decisions()
        settings = (self.training, self.track_running_stats, self.eps, self.momentum, self.activation)
        found = decisions.find(settings, tensors)
        if found is None:
            found = self._decided(*tensors)
            if found is not None and found.ready is not None:
                decisions.note(settings, tensors, found)
        return found

    def _decided(
        self,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor | None,
        var: Tensor | None,
        batches: Tensor | None,
    ) -> Decision | None:
        """What to do with these tensors on the kernels; None where they do not take them."""
        training, tracked = self.training, self.track_running_stats
        own = training or (mean is None and var is None)
        if not (tracked if training else not own):
            mean = var = None
        if (mean is None) != (var is None):
            return None  # torch's own function says what is wrong
        momentum = 0.0 if self.momentum is None else self.momentum
        counted = False
        if batches is not None and training and tracked:
            counted = True
            if batches.dtype is not torch.int64 or batches.device != x.device:
                return None
        if momentum < 0 or self.eps <= 0:
            return None
        if not functional.usable(x, residual, weight, bias, mean, var):
            return None
        if own and x.numel() == x.shape[1]:
            F._verify_batch_size(x.shape)  # type: ignore[attr-defined]
        averaged = counted and self.momentum is None
        if averaged:
            momentum = -1.0
        compiling = torch.compiler.is_compiling()
        wanted = not compiling and functional.differentiable(x, residual, weight, bias)
        ready = None if compiling else functional.ready_for(x, residual)
        return Decision(own, mean is not None, counted, averaged, momentum, wanted, ready)

    def _tensors(self, compiling: bool) -> tuple[Tensor | None, ...]:
        """Weight, bias, running mean and variance, and the number of batches."""
        if not compiling:  # without Module's long way to an attribute
            try:
                own, kept = self._parameters, self._buffers
                statistics = kept["running_mean"], kept["running_var"], kept["num_batches_tracked"]
                return own["weight"], own["bias"], *statistics
            except KeyError:  # replaced by a plain attribute, or parametrized
                pass
        statistics = self.running_mean, self.running_var, self.num_batches_tracked
        return self.weight, self.bias, *statistics

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_decisions"}

    def without_batch_norm(self) -> nn.Module:
        """What is left of the module when its batch norm was folded away."""
        return AddActivation(self.activation)

    def activation_alone(self) -> nn.Module:
        """The same, where nobody gives it a residual."""
        left = self.without_batch_norm()
        if type(left) is not AddActivation:
            return left
        return nn.ReLU() if left.activation else nn.Identity()

    def extra_repr(self) -> str:
        text: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return text if self.activation is None else f"{text}, activation={self.activation!r}"


class AddActivation(nn.Module):
    """`activation(input + residual)`, as a folded `Fused` leaves it."""

    def __init__(self, activation: str | None) -> None:
        super().__init__()
        self.activation = activation
        self.relu = activation == "relu"

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """As `Fused.forward`, without the batch norm. torch.jit.script takes it."""
        if residual is not None:
            input = input + residual
        return torch.relu(input) if self.relu else input

    def extra_repr(self) -> str:
        return f"activation={self.activation!r}"


def add_activate(module: Any, y: Tensor, residual: Tensor | None) -> Tensor:
    """What follows the batch norm of a module, in torch's operations."""
    if residual is not None:
        y = y + residual
    return torch.relu(y) if module.activation == "relu" else y


def _fits(small: torch.Size, large: torch.Size) -> bool:
    """Whether a tensor of the first shape can be added to one of the second without making it larger."""
    extra = len(large) - len(small)
    return extra >= 0 and all(a in (1, b) for a, b in zip(small, large[extra:], strict=True))


def _broadcast(one: torch.Size, other: torch.Size) -> bool:
    """Whether tensors of these shapes can be added."""
    return all(a == b or 1 in (a, b) for a, b in zip(reversed(one), reversed(other), strict=False))


def _call_of(module: nn.Module, *arguments: Any) -> Any:
    tracer: Any = arguments[0].tracer
    given = tuple(each for each in arguments if each is not None)
    return tracer.create_proxy("call_module", tracer.path_of_module(module), given, {})


class BatchNorm1d(Fused, nn.BatchNorm1d):
    """Over inputs (N, C) or (N, C, L); see `torch.nn.BatchNorm1d` and `Fused`."""


class BatchNorm2d(Fused, nn.BatchNorm2d):
    """Over inputs (N, C, H, W); see `torch.nn.BatchNorm2d` and `Fused`."""


class BatchNorm3d(Fused, nn.BatchNorm3d):
    """Over inputs (N, C, D, H, W); see `torch.nn.BatchNorm3d` and `Fused`."""
