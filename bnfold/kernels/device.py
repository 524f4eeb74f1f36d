"""A CUDA device: its limits, and launches on it."""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from bnfold.kernels.compile import KernelError, compiled
from bnfold.kernels.launch import Device, Launch

__all__ = ["CudaDevice", "cuda_device"]

OLDEST = (7, 5)  # compute capability that the kernels are compiled and checked for


class Pointer(Protocol):
    """A tensor in the device's memory."""

    def data_ptr(self) -> int: ...


@dataclass(frozen=True)
class CudaDevice:
    """One device, whose primary context is current where it is called. arch: what kernels are for."""

    ordinal: int
    limits: Device
    arch: str

    def launch(
        self, launch: Launch, tensors: Sequence[Pointer | None], numbers: Sequence[Any], stream: int
    ) -> None:
        """Queues a kernel on a stream.

        Args:
            launch: the kernel and its grid.
            tensors: its first arguments; None is the null pointer.
            numbers: its other arguments, numpy scalars of the types that the kernel takes.
            stream: the address of a cudaStream_t.

        Raises:
            KernelError: it does not compile, or the device refuses it.
        """
        import cuda.core

        _enter(self.ordinal)
        kernel, config = _prepared(self, launch)
        addresses = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
        try:
            cuda.core.launch(_stream(stream), config, kernel, *addresses, *numbers)
        except Exception as error:  # cuda-core's own kinds, and those of its bindings
            raise KernelError(f"{launch.kernel} cannot run on {launch.grid} blocks: {error}") from error


@functools.cache
def cuda_device(ordinal: int) -> CudaDevice:
    """The device of that number, as torch counts them.

    Raises:
        KernelError: no driver, no such device, cuda-core is missing, or the device is older than `OLDEST`.
    """
    try:
        import cuda.core
    except ImportError as error:
        raise KernelError(f"{error}: pip install 'bnfold[gpu]' brings what launches the kernels") from error
    try:
        device = cuda.core.Device(ordinal)
        device.set_current()
        properties = device.properties
        capability = tuple(device.compute_capability)
        limits = Device(
            capability=(capability[0], capability[1]),
            multiprocessors=properties.multiprocessor_count,
            shared_memory=properties.max_shared_memory_per_block_optin,
            clusters=8 if properties.cluster_launch else 1,  # the largest portable one
            cooperative=bool(properties.cooperative_launch),
        )
    except Exception as error:
        raise KernelError(f"CUDA device {ordinal} cannot be used: {error}") from error
    if limits.capability < OLDEST:
        raise KernelError(
            f"CUDA device {ordinal} has compute capability {capability[0]}.{capability[1]}: the kernels need "
            f"{OLDEST[0]}.{OLDEST[1]}"
        )
    return CudaDevice(ordinal, limits, f"sm_{capability[0]}{capability[1]}")


_threads = threading.local()


def _enter(ordinal: int) -> None:
    """Lets this thread use the device: autograd has threads of its own, and cuda-core asks it of each."""
    import cuda.core

    entered = _threads.__dict__.setdefault("entered", set())
    if ordinal not in entered:
        cuda.core.Device(ordinal).set_current()
        entered.add(ordinal)


@functools.lru_cache(maxsize=4096)
def _prepared(device: CudaDevice, launch: Launch) -> tuple[Any, Any]:
    """The kernel and its launch configuration, seen to fit the device."""
    import cuda.core

    kernel = _loaded(device, launch.source, launch.kernel)
    # cuda-core counts the grid in clusters where there are any.
    cluster = {"cluster": launch.cluster} if launch.cluster > 1 else {}
    config = cuda.core.LaunchConfig(
        grid=launch.grid // launch.cluster,
        block=launch.block,
        shmem_size=launch.shared,
        is_cooperative=launch.cooperative,
        **cluster,
    )
    if cluster:
        stream = cuda.core.Device(device.ordinal).default_stream
        if kernel.occupancy.max_active_clusters(config, stream=stream) < 1:
            raise KernelError(f"no cluster of {launch.cluster} blocks of {launch.shared} bytes fits")
    return kernel, config


@functools.cache
def _loaded(device: CudaDevice, source: str, name: str) -> Any:
    """The kernel, allowed all shared memory that a block may have."""
    import cuda.core
    from cuda.bindings import driver

    found = compiled(source, name, device.arch)
    try:
        kernel = cuda.core.ObjectCode.from_cubin(found.cubin).get_kernel(found.symbol)
    except Exception as error:
        raise KernelError(f"{name} cannot be loaded: {error}") from error
    attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    (status,) = driver.cuKernelSetAttribute(
        attribute, device.limits.shared_memory, kernel.handle, device.ordinal
    )
    if status != driver.CUresult.CUDA_SUCCESS:
        asked = f"{device.limits.shared_memory} bytes of shared memory"
        raise KernelError(f"{name} is refused {asked}: {status.name}")
    return kernel


@functools.lru_cache(maxsize=64)
def _stream(address: int) -> Any:
    import cuda.core

    # torch's default stream is the null address.
    return cuda.core.Stream.from_handle(address) if address else cuda.core.LEGACY_DEFAULT_STREAM
