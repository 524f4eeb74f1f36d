"""From tensors to launches: the calls of the kernels, which reference.py has in torch's operations.

Activations are dense, in torch's order of dimensions or channels last, and are read as the array
[outer][channels][inner] that the launch table plans for. What a call returns is in the same order as its x.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from bnfold.kernels.compile import KernelError
from bnfold.kernels.device import cuda_device
from bnfold.kernels.launch import Device, Launch, Problem, plan, reading
from bnfold.nn.arguments import Arguments, Running, Saved

__all__ = [
    "KEEP_NOTHING",
    "NAMES",
    "Machine",
    "aligned",
    "apply",
    "apply_backward",
    "backward",
    "dense",
    "forward",
    "machine_of",
    "mask_bytes",
    "order_of",
    "packed",
    "statistics",
    "sums",
    "unpacked",
]

MOMENTS, SUMS = 8, 8  # bytes of the sets that blocks exchange (moments.cuh)
NAMES = {torch.float32: "float", torch.float16: "bnfold::half", torch.bfloat16: "bnfold::bfloat16"}


class Machine(Protocol):
    """What runs kernels: a CUDA device, or in tests a stand-in for one."""

    @property
    def limits(self) -> Device: ...

    def launch(
        self, launch: Launch, tensors: Sequence[Tensor | None], numbers: Sequence[Any], stream: int
    ) -> None: ...


def machine_of(x: Tensor) -> Machine:
    """What runs kernels on a tensor's device.

    Raises:
        KernelError: nothing does on this kind of device, or this device cannot; the text says why.
    """
    if x.device.type != "cuda":
        raise KernelError(f"there are no kernels for {x.device.type} tensors", expected=True)
    return cuda_device(x.device.index)


def stream_of(x: Tensor) -> int:
    """The stream that torch queues work for this tensor on."""
    return torch.cuda.current_stream(x.device).cuda_stream if x.is_cuda else 0


class Array(NamedTuple):
    """How a dense tensor is read."""

    outer: int
    channels: int
    inner: int


def dense(x: Tensor, like: Tensor | None = None) -> Tensor:
    """The tensor itself if it is dense, in the order of `like` where that is given; else a copy that is.

    Channels last stays channels last, also through slices of a batch that are not dense.
    """
    return x.resolve_neg().contiguous(memory_format=order_of(x if like is None else like))


def order_of(x: Tensor) -> torch.memory_format:
    """The order of dimensions in which `dense` leaves a tensor."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    if last is None or x.is_contiguous():
        return torch.contiguous_format
    return last if x.is_contiguous(memory_format=last) or _channels_last(x) else torch.contiguous_format


def _channels_last(x: Tensor) -> bool:
    """Whether torch's operators take the strides of a tensor that is not dense for channels last."""
    least = 0
    for axis in (1, *range(x.dim() - 1, 1, -1), 0):
        stride = x.stride(axis)
        if stride < least or stride == 0 or (axis == 0 and least == x.stride(1)):
            return False
        least = stride * x.shape[axis]
    return True


def array_of(x: Tensor) -> Array:
    """How a dense tensor is read."""
    channels = x.shape[1]
    rest = x.numel() // max(1, channels)
    planes = x.is_contiguous() and x.numel() != channels * x.shape[0]
    return Array(x.shape[0], channels, rest // x.shape[0]) if planes else Array(rest, channels, 1)


def mask_bytes(x: Tensor) -> int:
    """Bytes of the mask of a dense tensor that is aligned to 16 bytes: one for each vector."""
    if x.dtype not in NAMES:
        return x.numel()
    found = reading(Problem("forward", (NAMES[x.dtype],), *array_of(x)))
    return x.numel() // (found.width if found else 1)


def packed(kept: Tensor, x: Tensor) -> Tensor:
    """The mask of a bool tensor of x's shape: in byte k a bit for each value of the k-th vector in memory."""
    count = mask_bytes(x)
    width = x.numel() // max(1, count)
    bits = dense(kept, like=x).as_strided((count, width), (width, 1)).to(torch.uint8)
    return (bits << torch.arange(width, device=x.device, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


def unpacked(mask: Tensor, x: Tensor) -> Tensor:
    """The mask as bool, of the shape of the x that it was noted for."""
    width = x.numel() // max(1, mask.numel())
    bits = (mask[:, None] >> torch.arange(width, device=mask.device, dtype=torch.uint8)) & 1
    found = torch.empty_like(x, dtype=torch.bool)
    found.as_strided((x.numel(),), (1,)).copy_(bits.reshape(-1))
    return found


def aligned(x: Tensor) -> Tensor:
    """The tensor, or a copy of it that starts at a multiple of 16 bytes."""
    return x if x.data_ptr() % 16 == 0 else x.clone()


def forward(given: Arguments, running: Running) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """As `reference.forward`; behind its results the mask, where there are both a residual and a ReLU."""
    x, residual, weight, bias, eps, relu = given
    *kept, momentum = running
    call = _Call("forward", x, (residual,), _type(weight, bias, running.mean))
    y = torch.empty_like(x)
    mask = call.new_mask() if given.masked else None
    mean, invstd = _vectors(x, torch.float32)
    call(
        *(x, residual, y, mask, weight, bias, mean, invstd, *kept, *call.mailbox(MOMENTS)),
        numbers=(np.float32(eps), np.float32(momentum), np.int32(relu)),
    )
    for changed in kept:
        if changed is not None:  # autograd shall see that it was
            torch.autograd.graph.increment_version(changed)
    return y, mean, invstd, mask


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and squared deviations from it, of each channel, float32."""
    call = _Call("forward", x, (), torch.float32)
    mean, m2 = _vectors(x, torch.float32)
    call(
        *(x, None, None, None, None, None, mean, m2),
        *(None, None, None, *call.mailbox(MOMENTS)),
        numbers=(np.float32(0), np.float32(0), np.int32(False)),
    )
    return mean, m2


def backward(
    saved: Saved, dy: Tensor, frozen: bool, needs_residual: bool
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Dx, the residual's gradient where it is wanted and not dy itself, dweight and dbias."""
    call, tensors = _backward_call("backward", saved, dy)
    dx = torch.empty_like(saved.x)
    dresidual = torch.empty_like(dx) if needs_residual and saved.relu else None
    dweight, dbias = _vectors(dx, _type(saved.weight, saved.bias))
    call(
        *(*tensors, dx, dresidual, dweight, dbias, None, None, *call.mailbox(SUMS)),
        numbers=(np.int32(saved.relu), np.int32(frozen)),
    )
    return dx, dresidual, dweight, dbias


def sums(saved: Saved, dy: Tensor) -> tuple[Tensor, Tensor]:
    """As `reference.sums`, float32, of dy where the value passed the ReLU."""
    call, tensors = _backward_call("backward", saved, dy)
    dz, dz_x = _vectors(saved.x, torch.float32)
    call(
        *(*tensors, None, None, None, None, dz, dz_x, *call.mailbox(SUMS)),
        numbers=(np.int32(saved.relu), np.int32(False)),
    )
    return dz, dz_x


def apply(given: Arguments, mean: Tensor, var: Tensor, noted: bool) -> tuple[Tensor, Tensor | None]:
    """As `reference.apply`; behind it the mask, if it is to be noted."""
    x, residual, weight, bias, eps, relu = given
    call = _Call("apply", x, (residual,), _type(weight, bias), mean.dtype)
    y = torch.empty_like(x)
    mask = call.new_mask() if noted else None
    numbers = (np.float32(eps), np.int32(relu))
    call(x, residual, y, mask, weight, bias, mean, var, numbers=numbers)
    return y, mask


def apply_backward(
    saved: Saved, dy: Tensor, mean_dz: Tensor, mean_dz_x: Tensor, needs_residual: bool
) -> tuple[Tensor, Tensor | None]:
    """Dx and the residual's gradient, from the means over all values of dz and dz * (x - mean), float32."""
    call, tensors = _backward_call("apply_backward", saved, dy)
    dx = torch.empty_like(saved.x)
    dresidual = torch.empty_like(dx) if needs_residual and saved.relu else None
    call(*tensors, mean_dz, mean_dz_x, dx, dresidual, numbers=(np.int32(saved.relu),))
    return dx, dresidual


class _Call:
    """One launch in the making: planned, then called with the kernel's pointers and its last numbers."""

    def __init__(
        self,
        kernel: str,
        x: Tensor,
        others: Sequence[Tensor | None],
        *types: torch.dtype,
        aligned: bool = True,
    ) -> None:
        if x.dtype not in NAMES or not {*types} <= {x.dtype, torch.float32}:
            raise KernelError(f"{x.dtype} with parameters or statistics of {types[-1]}", expected=True)
        self.x = x
        self.machine = machine_of(x)
        self.array = array_of(x)
        aligned = aligned and all(t is None or t.data_ptr() % 16 == 0 for t in (x, *others))
        names = tuple(NAMES[each] for each in (x.dtype, *types))
        self.plan = _planned(kernel, names, self.array, aligned, self.machine.limits)

    def new_mask(self) -> Tensor:
        """A byte for each vector."""
        return self.x.new_empty(self.x.numel() // self.plan.width, dtype=torch.uint8)

    def mailbox(self, size: int) -> tuple[Tensor | None, Tensor | None]:
        """What blocks of a cooperative launch exchange: sets of that many bytes, and words to wait by."""
        if not self.plan.cooperative:
            return None, None
        letters = self.plan.units * self.plan.ranks * self.plan.group * size
        return self.x.new_empty(letters, dtype=torch.uint8), _words(self.x, self.plan.grid)

    def __call__(self, *tensors: Tensor | None, numbers: tuple[Any, ...]) -> None:
        numbers = (*_shape(self.array, self.plan), *numbers)
        self.machine.launch(self.plan, tensors, numbers, stream_of(self.x))


@functools.lru_cache(maxsize=4096)
def _planned(kernel: str, types: tuple[str, ...], array: Array, aligned: bool, limits: Device) -> Launch:
    found = plan(Problem(kernel, types, *array, aligned), limits)
    if found is None:
        if 0 in array:
            raise KernelError("there is nothing to do for an empty tensor", expected=True)
        raise KernelError(f"no kernel reads {array.outer} x {array.channels} planes of {array.inner} values")
    return found


@functools.lru_cache(maxsize=4096)
def _shape(array: Array, launch: Launch) -> tuple[Any, ...]:
    rest = (array.channels, array.inner, launch.group, launch.ranks, launch.window)
    return np.int64(array.outer), *map(np.int32, rest)


def _vectors(x: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """Two of a number for each channel; not two views of one, which operators may not return."""
    return x.new_empty(x.shape[1], dtype=kind), x.new_empty(x.shape[1], dtype=kind)


def _type(*parameters: Tensor | None) -> torch.dtype:
    """That of all parameters: kernels take them in one."""
    first, *others = {each.dtype for each in parameters if each is not None} or {torch.float32}
    if others:
        raise KernelError(f"parameters of {first} and {others[0]}", expected=True)
    return first


def _backward_call(kernel: str, saved: Saved, dy: Tensor) -> tuple[_Call, tuple[Tensor | None, ...]]:
    """The call and its first tensors. x and dy must be read in the vectors that the mask was noted for."""
    x, mask, weight, bias, mean, invstd, _ = saved
    single = mask is not None and mask.numel() == x.numel()
    if mask is not None and not single:
        x, dy = aligned(x), aligned(dy)
    call = _Call(kernel, x, (dy,), _type(weight, bias), aligned=not single)
    return call, (x, dy, mask, weight, bias, mean, invstd)


_WORDS: dict[tuple[torch.device, int], Tensor] = {}
# Set where memory may be of a CUDA graph's pool, as when torch.compile warms up: nothing of it may be kept.
KEEP_NOTHING: ContextVar[bool] = ContextVar("KEEP_NOTHING", default=False)


def _words(x: Tensor, count: int) -> Tensor:
    """Words that are zero, or as an earlier launch on the same stream left them, which is as good.

    A graph that is being captured gets its own, zeroed at each replay, for it may run beside its stream.
    """
    if KEEP_NOTHING.get() or (x.is_cuda and torch.cuda.is_current_stream_capturing()):
        return x.new_zeros(count, dtype=torch.int32)
    key = (x.device, stream_of(x))
    kept = _WORDS.get(key)
    if kept is None or kept.numel() < count:
        kept = _WORDS[key] = x.new_zeros(max(count, 1024), dtype=torch.int32)
    return kept
