"""From tensors to launches: the calls of the kernels, which reference.py has in torch's operations.

Activations are dense, in torch's order of dimensions or channels last, and are read as the array
[outer][channels][inner] that the launch table plans for. What a call returns is in the same order as its x.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from bnfold.kernels.compile import KernelError, Refused
from bnfold.kernels.device import cuda_device
from bnfold.kernels.launch import Device, Launch, Problem, plan, reading
from bnfold.nn.arguments import Arguments, Running, Saved
from bnfold.nn.arrays import aligned, array_of, dense, is_ordered, order_of, ordered
from bnfold.nn.words import Pointer, mailbox_of

__all__ = [
    "NAMES",
    "Machine",
    "Ready",
    "aligned",
    "apply",
    "apply_backward",
    "backward",
    "dense",
    "forward",
    "is_ordered",
    "machine_of",
    "mask_bytes",
    "order_of",
    "ordered",
    "packed",
    "plain",
    "statistics",
    "sums",
    "unpacked",
]

MOMENTS, SUMS = 8, 8  # bytes of the sets that blocks exchange (moments.cuh)
NAMES = {torch.float32: "float", torch.float16: "bnfold::half", torch.bfloat16: "bnfold::bfloat16"}

TYPES = {name: kind for kind, name in NAMES.items()}


class Machine(Protocol):
    """What runs kernels: a CUDA device, or in tests a stand-in for one."""

    @property
    def limits(self) -> Device: ...

    def launch(
        self, launch: Launch, tensors: Sequence[Pointer | None], numbers: Sequence[Any], stream: int
    ) -> None: ...


def machine_of(x: Tensor) -> Machine:
    """What runs kernels on a tensor's device.

    Raises:
        KernelError: nothing does on this kind of device, or this device cannot; the text says why.
    """
    if not x.is_cuda:
        raise KernelError(f"there are no kernels for {x.device.type} tensors", expected=True)
    return cuda_device(x.get_device())


def stream_of(x: Tensor) -> int:
    """The stream that torch queues work for this tensor on."""
    if not x.is_cuda:
        return 0
    library: Any = torch._C  # torch.cuda.current_stream makes an object of it, which takes longer
    return int(library._cuda_getCurrentRawStream(x.get_device()))


def plain(*tensors: Tensor | None) -> bool:
    """Whether nothing but autograd watches these tensors, and each is its values in memory."""
    for each in tensors:
        if each is not None and (type(each) not in _CLASSES or not _has_storage(each)):
            return False
    return _modes() == 0 and _tracing() is None and not _transforms() and forward_ad._current_level < 0


_CLASSES = (Tensor, torch.nn.Parameter)
# Looked up once: this is asked at each call.
_has_storage = torch._C._has_storage
_modes, _tracing = torch._C._len_torch_dispatch_stack, torch._C._get_tracing_state
_transforms = torch._C._are_functorch_transforms_active


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


def forward(
    given: Arguments, running: Running, ready: Ready | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """As `reference.forward`; behind its results the mask, where there are both a residual and a ReLU."""
    x, residual, weight, bias, eps, relu = given
    *kept, momentum = running
    call = _call(ready, "forward", x, residual, (weight, bias, running.mean))
    y = torch.empty_like(x)
    mask = call.new_mask(x) if given.masked else None
    mean, invstd = _vectors(x, torch.float32, weight)
    call(x, (x, residual, y, mask, weight, bias, mean, invstd, *kept), (eps, momentum, relu), MOMENTS)
    changed = [each for each in kept if each is not None]
    if changed:  # autograd shall see that they were
        torch.autograd.graph.increment_version(changed)
    return y, mean, invstd, mask


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and squared deviations from it, of each channel, float32."""
    call = _call(None, "forward", x, None, ())
    mean, m2 = _vectors(x, torch.float32)
    tensors = (x, None, None, None, None, None, mean, m2, None, None, None)
    call(x, tensors, (0.0, 0.0, False), MOMENTS)
    return mean, m2


def backward(
    saved: Saved, dy: Tensor, frozen: bool, needs_residual: bool, ready: Ready | None = None
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Dx, the residual's gradient where it is wanted and not dy itself, dweight and dbias."""
    call, tensors = _backward_call("backward", saved, dy, ready)
    dx = torch.empty_like(saved.x)
    dresidual = torch.empty_like(dx) if needs_residual and saved.relu else None
    dweight, dbias = _vectors(dx, call.kind, saved.weight)
    tensors = (*tensors, dx, dresidual, dweight, dbias, None, None)
    call(dx, tensors, (saved.relu, frozen), SUMS)
    return dx, dresidual, dweight, dbias


def sums(saved: Saved, dy: Tensor) -> tuple[Tensor, Tensor]:
    """As `reference.sums`, float32, of dy where the value passed the ReLU."""
    call, tensors = _backward_call("backward", saved, dy)
    dz, dz_x = _vectors(saved.x, torch.float32)
    call(saved.x, (*tensors, None, None, None, None, dz, dz_x), (saved.relu, False), SUMS)
    return dz, dz_x


def apply(
    given: Arguments, mean: Tensor, var: Tensor, noted: bool, ready: Ready | None = None
) -> tuple[Tensor, Tensor | None]:
    """As `reference.apply`; behind it the mask, if it is to be noted."""
    x, residual, weight, bias, eps, relu = given
    call = _call(ready, "apply", x, residual, (weight, bias), mean)
    y = torch.empty_like(x)
    mask = call.new_mask(x) if noted else None
    call(x, (x, residual, y, mask, weight, bias, mean, var), (eps, relu))
    return y, mask


def apply_backward(
    saved: Saved, dy: Tensor, mean_dz: Tensor, mean_dz_x: Tensor, needs_residual: bool
) -> tuple[Tensor, Tensor | None]:
    """Dx and the residual's gradient, from the means over all values of dz and dz * (x - mean), float32."""
    call, tensors = _backward_call("apply_backward", saved, dy)
    dx = torch.empty_like(saved.x)
    dresidual = torch.empty_like(dx) if needs_residual and saved.relu else None
    call(dx, (*tensors, mean_dz, mean_dz_x, dx, dresidual), (saved.relu,))
    return dx, dresidual


# The last numbers that each kernel takes.
NUMBERS: dict[str, tuple[type, ...]] = {
    "forward": (np.float32, np.float32, np.int32),
    "backward": (np.int32, np.int32),
    "apply": (np.float32, np.int32),
    "apply_backward": (np.int32,),
}


class _Call:
    """A launch that is ready for all tensors of a kind on a machine: planned, with its numbers."""

    def __init__(self, machine: Machine, problem: Problem, limits: Device) -> None:
        self.machine, self.problem, self.limits = machine, problem, limits
        self.known = machine.limits  # for which this is planned, unless launches were refused
        self.plan = plan = _planned(problem, limits)
        shape = (problem.channels, problem.inner, plan.group, plan.ranks, plan.window)
        self.shape = (np.int64(problem.outer), *map(np.int32, shape))
        self.kind = TYPES[problem.types[1]]  # of parameters
        self.sets = plan.units * plan.ranks * plan.group  # that blocks of a cooperative launch exchange
        self.numbers: dict[tuple[float, ...], tuple[Any, ...]] = {}
        self.stale = False  # the device can less than this was planned for

    def serves(self, x: Tensor, other: Tensor | None) -> bool:
        """Whether it still is for tensors of the kind that it was found for; other: what is read beside x."""
        if (x.data_ptr() | (0 if other is None else other.data_ptr())) % 16:
            return False
        machine = machine_of(x)
        return machine is self.machine and machine.limits is self.known and not self.stale

    def new_mask(self, x: Tensor) -> Tensor:
        """A byte for each vector."""
        return x.new_empty(x.numel() // self.plan.width, dtype=torch.uint8)

    def __call__(
        self, x: Tensor, tensors: Sequence[Tensor | None], last: tuple[float, ...], exchanged: int = 0
    ) -> None:
        """Launches it; where its blocks cannot run together, the next line of the table that is possible.

        Args:
            x: any tensor of its device.
            tensors: the kernel's pointers, but those to what its blocks exchange.
            last: the numbers that follow the shape.
            exchanged: bytes of the sets that blocks exchange for each channel; 0: they never do.

        Raises:
            KernelError: no line of the table can be launched.
        """
        call, stream, reasons = self, stream_of(x), []
        while True:
            numbers = call.numbers.get(last) or call._numbered(last)
            pointers: Sequence[Pointer | None] = tensors
            if call.plan.cooperative:
                pointers = (*tensors, *mailbox_of(x, call.sets * exchanged, call.plan.grid, stream))
            elif exchanged:
                pointers = (*tensors, None, None)
            try:
                self.machine.launch(call.plan, pointers, numbers, stream)
                break
            except Refused as error:
                less = call.plan.without(call.limits)
                if less is None:
                    raise
                reasons.append(str(error))
                call = _Call(self.machine, self.problem, less)
        if reasons:
            _refused(x, call, reasons)

    def _numbered(self, last: tuple[float, ...]) -> tuple[Any, ...]:
        if len(self.numbers) >= 64:  # a momentum that changes with each step, say
            self.numbers.clear()
        kinds = NUMBERS[self.problem.kernel]
        found = (*self.shape, *(kind(each) for kind, each in zip(kinds, last, strict=True)))
        self.numbers[last] = found
        return found


class Ready:
    """The calls for all tensors of some kinds (kinds.py), each found once: a module keeps them.

    order: of the dimensions of the activations, which are dense.
    """

    def __init__(self, order: torch.memory_format) -> None:
        self.order = order
        self.calls: dict[str, _Call] = {}


_CALLS: dict[tuple[Any, ...], _Call] = {}
_LESS: dict[tuple[torch.device, Device], Device] = {}  # what a device can that has refused launches


def _call(
    ready: Ready | None,
    kernel: str,
    x: Tensor,
    other: Tensor | None,
    parameters: Sequence[Tensor | None],
    *statistics: Tensor,
) -> _Call:
    """The call of a kernel for tensors like these; other: what is read beside x.

    Raises:
        KernelError: there is no kernel for them.
    """
    if ready is None:
        return _found(kernel, x, other, _type(parameters), *(each.dtype for each in statistics))
    call = ready.calls.get(kernel)
    if call is None or not call.serves(x, other):
        call = _call(None, kernel, x, other, parameters, *statistics)
        if call.problem.aligned:
            ready.calls[kernel] = call
    return call


def _found(kernel: str, x: Tensor, other: Tensor | None, *types: torch.dtype, aligned: bool = True) -> _Call:
    machine = machine_of(x)
    aligned = aligned and (x.data_ptr() | (0 if other is None else other.data_ptr())) % 16 == 0
    key = (kernel, x.shape, x.stride(), x.dtype, types, aligned, x.get_device())
    found = _CALLS.get(key)
    if found is None or found.machine is not machine or found.known is not machine.limits:
        if x.dtype not in NAMES or not {*types} <= {x.dtype, torch.float32}:
            raise KernelError(f"{x.dtype} with parameters or statistics of {types[-1]}", expected=True)
        problem = Problem(kernel, tuple(NAMES[each] for each in (x.dtype, *types)), *array_of(x), aligned)
        limits = _LESS.get((x.device, machine.limits), machine.limits)
        if len(_CALLS) >= 4096:
            _CALLS.clear()
        found = _CALLS[key] = _Call(machine, problem, limits)
    return found


def _refused(x: Tensor, call: _Call, reasons: list[str]) -> None:
    """Remembers what a device cannot do, since another launch came through, and says so once."""
    _LESS[x.device, call.known] = call.limits
    for each in _CALLS.values():
        each.stale = True
    _CALLS.clear()
    what = "clusters" if call.limits.cooperative else "grids"
    _warn(f"{x.device} does not let {what} of blocks run together: {call.plan.row} stands in ({reasons[-1]})")


@functools.cache
def _warn(reason: str) -> None:
    warnings.warn(f"bnfold.nn: {reason}", stacklevel=2)


@functools.lru_cache(maxsize=4096)
def _planned(problem: Problem, limits: Device) -> Launch:
    found = plan(problem, limits)
    if found is None:
        outer, channels, inner = problem.outer, problem.channels, problem.inner
        if 0 in (outer, channels, inner):
            raise KernelError("there is nothing to do for an empty tensor", expected=True)
        raise KernelError(f"no kernel reads {outer} x {channels} planes of {inner} values")
    return found


def _vectors(x: Tensor, kind: torch.dtype, like: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Two of a number for each channel; not two views of one, which operators may not return.

    like: a parameter of the module, of which one of its type is made sooner.
    """
    if like is not None and like.dtype is kind:
        return torch.empty_like(like), torch.empty_like(like)
    return x.new_empty(x.shape[1], dtype=kind), x.new_empty(x.shape[1], dtype=kind)


def _type(parameters: Sequence[Tensor | None]) -> torch.dtype:
    """That of all parameters: kernels take them in one."""
    found = None
    for each in parameters:
        if each is not None:
            if found is None:
                found = each.dtype
            elif each.dtype is not found:
                raise KernelError(f"parameters of {found} and {each.dtype}", expected=True)
    return torch.float32 if found is None else found


def _backward_call(
    kernel: str, saved: Saved, dy: Tensor, ready: Ready | None = None
) -> tuple[_Call, tuple[Tensor | None, ...]]:
    """The call and its first tensors. x and dy must be read in the vectors that the mask was noted for."""
    x, mask, weight, bias, mean, invstd, _ = saved
    if mask is not None and mask.numel() == x.numel():
        call = _found(kernel, x, dy, _type((weight, bias)), aligned=False)
    else:
        if mask is not None:
            x, dy = aligned(x), aligned(dy)
        call = _call(ready, kernel, x, dy, (weight, bias))
    return call, (x, dy, mask, weight, bias, mean, invstd)
