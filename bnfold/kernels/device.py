"""A CUDA device: its limits, and launches on it."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from bnfold.kernels.compile import KernelError, Refused, compiled, cuda_core
from bnfold.kernels.launch import CLUSTER_SIZES, THREADS, Device, Launch
from bnfold.origin import extra

__all__ = ["CudaDevice", "cuda_device", "zeroed"]

OLDEST = (7, 5)  # compute capability that the kernels are compiled and checked for
SPARE = "BNFOLD_SPARE_MULTIPROCESSORS"  # what cooperative grids leave to others, NCCL say
_IDLE = b".version 7.8\n.target sm_90\n.address_size 64\n.visible .entry idle() { ret; }\n"


class Pointer(Protocol):
    """A tensor in the device's memory."""

    def data_ptr(self) -> int: ...


Result = TypeVar("Result")


def _once(function: Callable[..., Result]) -> Callable[..., Result]:
    """The function, which remembers what it gave, and why it failed: to compile again would not help."""

    @functools.lru_cache(maxsize=4096)
    def tried(*arguments: Any) -> tuple[Result | None, KernelError | None]:
        try:
            return function(*arguments), None
        except KernelError as error:
            return None, type(error)(str(error))

    @functools.wraps(function)
    def given(*arguments: Any) -> Result:
        result, error = tried(*arguments)
        if error is not None:
            raise type(error)(str(error))
        return result  # type: ignore[return-value]

    return given


@dataclass(frozen=True, eq=False)
class CudaDevice:
    """One device. context: its primary one, as torch uses. arch: what kernels are compiled for."""

    ordinal: int
    limits: Device
    arch: str
    context: int

    def launch(
        self, launch: Launch, tensors: Sequence[Pointer | None], numbers: Sequence[Any], stream: int
    ) -> None:
        """Queues a kernel on a stream.

        Args:
            launch: the kernel and its grid.
            tensors: its first arguments; None is the null pointer.
            numbers: its other arguments, numpy scalars of the types that the kernel takes.
            stream: the address of a cudaStream_t of the device.

        Raises:
            KernelError: it does not compile, or the device refuses it; then it is `Refused` where that may be
                because its blocks have to run together.
        """
        core, driver = _cuda()
        # Another device's context may be current, or none, as in a thread in which autograd has just begun.
        status, current = driver.cuCtxGetCurrent()
        elsewhere = status != 0 or int(current) != self.context
        if elsewhere:
            _asked(driver.cuCtxPushCurrent(self.context))
        try:
            kernel, config = _prepared(self, launch)
            addresses = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
            core.launch(_stream(stream), config, kernel, *addresses, *numbers)
        except KernelError:
            raise
        except Exception as error:  # cuda-core's own kinds, and those of its bindings
            reason = f"{launch.kernel} cannot run on {launch.grid} blocks: {_line(error)}"
            raise (Refused if launch.cluster > 1 or launch.cooperative else KernelError)(reason) from error
        finally:
            if elsewhere:
                driver.cuCtxPopCurrent()


@_once
def cuda_device(ordinal: int) -> CudaDevice:
    """The device of that number, as torch counts them.

    Raises:
        KernelError: no driver, no such device, cuda-core is missing, or the device is older than `OLDEST`.
    """
    core, driver = _cuda()
    try:
        started = driver.cuInit(0)
    except Exception as error:  # of which kind depends on the release
        raise KernelError(f"no NVIDIA driver can be loaded ({_line(error)})") from error
    try:
        _asked(started)
        device = core.Device(ordinal)
        properties = device.properties
        major, minor = device.compute_capability
        count, shared = properties.multiprocessor_count, properties.max_shared_memory_per_block_optin
        clusters = bool(properties.cluster_launch)
        # Never released: torch holds it as well.
        context = int(_asked(driver.cuDevicePrimaryCtxRetain(ordinal)))
        limits = Device(
            capability=(major, minor),
            multiprocessors=count,
            shared_memory=shared,
            clusters=CLUSTER_SIZES[-1] if clusters else 1,
            cooperative=bool(properties.cooperative_launch),
            at_once=_clusters_at_once(ordinal, context, shared) if clusters else (),
            spare=_spare(count),
        )
    except Exception as error:
        raise KernelError(f"CUDA device {ordinal} cannot be used: {_line(error)}") from error
    if limits.capability < OLDEST:
        raise KernelError(
            f"CUDA device {ordinal} has compute capability {major}.{minor}: the kernels need "
            f"{OLDEST[0]}.{OLDEST[1]}"
        )
    return CudaDevice(ordinal, limits, f"sm_{major}{minor}", context)


def zeroed(ordinal: int, words: int) -> int:
    """The address of so many 4-byte words of a device that are zero, never freed, and of no torch allocator.

    Not for a stream that is being captured: it waits until they are zero.

    Raises:
        KernelError: the device has no memory for them, or cannot be used.
    """
    device = cuda_device(ordinal)
    _, driver = _cuda()
    relaxed = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
    before = _asked(driver.cuThreadExchangeStreamCaptureMode(relaxed))  # another thread may capture
    try:
        _asked(driver.cuCtxPushCurrent(device.context))
        try:
            address = _asked(driver.cuMemAlloc(4 * words))
            # The default stream would wait for others, and must not be used while one of them is captured.
            stream = _asked(driver.cuStreamCreate(driver.CUstream_flags.CU_STREAM_NON_BLOCKING))
            _asked(driver.cuMemsetD32Async(address, 0, words, stream))
            _asked(driver.cuStreamSynchronize(stream))
            _asked(driver.cuStreamDestroy(stream))
            return int(address)
        finally:
            driver.cuCtxPopCurrent()
    except KernelError as error:
        raise KernelError(f"CUDA device {ordinal} has no memory for {words} words: {error}") from error
    finally:
        driver.cuThreadExchangeStreamCaptureMode(before)


def _clusters_at_once(ordinal: int, context: int, shared: int) -> tuple[int, ...]:
    """How many clusters of each of `CLUSTER_SIZES` run at one time, or () if the driver does not tell.

    That depends on how many multiprocessors each part of the chip has that a cluster must fit into.
    """
    core, driver = _cuda()
    try:
        _asked(driver.cuCtxPushCurrent(context))
        try:
            kernel = core.ObjectCode.from_ptx(_IDLE).get_kernel("idle")
            _allow(driver, kernel, shared, ordinal)
            configs = [
                core.LaunchConfig(grid=1, cluster=size, block=THREADS, shmem_size=shared)
                for size in CLUSTER_SIZES
            ]
            stream = _stream(0)
            return tuple(int(kernel.occupancy.max_active_clusters(each, stream=stream)) for each in configs)
        finally:
            driver.cuCtxPopCurrent()
    except Exception:  # it is only an estimate that gets better
        return ()


def _spare(multiprocessors: int) -> int:
    """How many multiprocessors the environment asks cooperative grids to leave to others."""
    text = os.environ.get(SPARE, "0")
    try:
        found = int(text)
    except ValueError:
        found = -1
    if not 0 <= found < multiprocessors:
        raise KernelError(f"{SPARE}={text}: a number from 0 to {multiprocessors - 1} is needed")
    return found


@_once
def _prepared(device: CudaDevice, launch: Launch) -> tuple[Any, Any]:
    """The kernel and its launch configuration, seen to fit the device, whose context is current."""
    core, _ = _cuda()
    kernel = _loaded(device, launch.source, launch.kernel)
    # cuda-core counts the grid in clusters where there are any.
    cluster = {"cluster": launch.cluster} if launch.cluster > 1 else {}
    config = core.LaunchConfig(
        grid=launch.grid // launch.cluster,
        block=launch.block,
        shmem_size=launch.shared,
        is_cooperative=launch.cooperative,
        **cluster,
    )
    if cluster and kernel.occupancy.max_active_clusters(config, stream=_stream(0)) < 1:
        raise Refused(f"no cluster of {launch.cluster} blocks of {launch.shared} bytes fits")
    return kernel, config


@_once
def _loaded(device: CudaDevice, source: str, name: str) -> Any:
    """The kernel, allowed all shared memory that a block may have."""
    core, driver = _cuda()
    found = compiled(source, name, device.arch)
    try:
        kernel = core.ObjectCode.from_cubin(found.cubin).get_kernel(found.symbol)
    except Exception as error:
        raise KernelError(f"{name} cannot be loaded: {_line(error)}") from error
    most = device.limits.shared_memory
    try:
        _allow(driver, kernel, most, device.ordinal)
    except KernelError as error:
        raise KernelError(f"{name} is refused {most} bytes of shared memory: {error}") from error
    return kernel


def _allow(driver: Any, kernel: Any, shared: int, ordinal: int) -> None:
    """Lets a kernel's blocks have so many bytes of shared memory."""
    attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    _asked(driver.cuKernelSetAttribute(attribute, shared, kernel.handle, ordinal))


@functools.lru_cache(maxsize=64)
def _stream(address: int) -> Any:
    core, _ = _cuda()
    # torch's default stream is the null address.
    return core.Stream.from_handle(address) if address else core.LEGACY_DEFAULT_STREAM


@functools.cache
def _cuda() -> tuple[Any, Any]:
    """cuda-core, and the driver's own functions."""
    core = cuda_core()
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise KernelError(f"{error}: {extra('gpu')} brings what launches the kernels") from error
    return core, driver


def _asked(answer: tuple[Any, ...]) -> Any:
    """What a function of the driver gave, if it gave anything."""
    status, *given = answer
    if status:
        raise KernelError(status.name)
    return given[0] if given else None


def _line(error: Exception) -> str:
    """An error's text in one line."""
    return " ".join(str(error).split())
