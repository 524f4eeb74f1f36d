"""A CUDA device: its limits, and launches on it."""

from __future__ import annotations

import ctypes
import functools
import os
import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from bnfold.kernels.compile import KernelError, Refused, compiled, cuda_core
from bnfold.kernels.launch import CLUSTER_SIZES, THREADS, Device, Launch
from bnfold.origin import extra

__all__ = ["CudaDevice", "cuda_device", "zeroed"]

OLDEST = (7, 5)  # compute capability that the kernels are compiled and checked for
SPARE = "BNFOLD_SPARE_MULTIPROCESSORS"  # what cooperative grids leave to others, NCCL say
_IDLE = b".version 7.8\n.target sm_90\n.address_size 64\n.visible .entry idle() { ret; }\n"


FORMATS: dict[type, str] = {np.int64: "q", np.int32: "i4x", np.float32: "f4x"}


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
        _, driver = _cuda()
        # Another device's context may be current, or none, as in a thread in which autograd has just begun.
        status, current = driver.cuCtxGetCurrent()
        elsewhere = status != 0 or int(current) != self.context
        if elsewhere:
            _asked(driver.cuCtxPushCurrent(self.context))
        try:
            _prepared(self, launch).queue(tensors, numbers, stream)
        except KernelError:
            raise
        except Exception as error:  # what the driver refuses, and cuda-core's own kinds
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
            stream = core.LEGACY_DEFAULT_STREAM
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


class _Arguments(threading.local):
    """A kernel's arguments in memory, 8 bytes each, and their addresses, as the driver takes them.

    Each thread has its own, for the driver reads them while other threads run.
    """

    def __init__(self, pointers: int, numbers: tuple[type, ...]) -> None:
        self._pointers = struct.Struct(f"<{pointers}Q")
        self._numbers = struct.Struct("<" + "".join(FORMATS[each] for each in numbers))
        self._memory = bytearray(self._pointers.size + self._numbers.size)
        begin = ctypes.addressof((ctypes.c_char * len(self._memory)).from_buffer(self._memory))
        places = range(begin, begin + len(self._memory), 8)
        self._places = (ctypes.c_void_p * len(places))(*places)
        self._address = ctypes.addressof(self._places)
        self._there: tuple[Any, ...] = ()  # the numbers that are in memory

    def at(self, pointers: Sequence[int], numbers: tuple[Any, ...]) -> int:
        """Where the addresses of these are, until the next call."""
        self._pointers.pack_into(self._memory, 0, *pointers)
        if numbers is not self._there:  # most often they are those of the last launch
            self._numbers.pack_into(self._memory, self._pointers.size, *numbers)
            self._there = numbers
        return self._address


class _Prepared:
    """A kernel that is loaded, to be launched on one grid.

    By the driver itself: cuda-core asks before each cooperative launch whether its blocks fit, which takes as
    long as the launch. The driver refuses those that do not.
    """

    def __init__(self, kernel: Any, launch: Launch) -> None:
        self._launch, self._kernel = launch, kernel  # whose code stays loaded
        self._function = _cuda()[1].CUfunction(int(kernel.handle))
        self._configs: dict[int, Any] = {}  # by stream
        self._arguments: _Arguments | None = None

    def queue(self, tensors: Sequence[Pointer | None], numbers: Sequence[Any], stream: int) -> None:
        """As `CudaDevice.launch`, in the context that is current.

        Raises:
            RuntimeError: the driver refuses it.
        """
        arguments = self._arguments
        if arguments is None:
            arguments = self._arguments = _Arguments(len(tensors), tuple(map(type, numbers)))
        config = self._configs.get(stream) or self._config(stream)
        pointers = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
        place = arguments.at(pointers, tuple(numbers))
        (status,) = _cuda()[1].cuLaunchKernelEx(config, self._function, place, 0)
        if status:
            raise RuntimeError(status.name)

    def _config(self, stream: int) -> Any:
        _, driver = _cuda()
        launch, kinds = self._launch, driver.CUlaunchAttributeID
        config = driver.CUlaunchConfig()
        config.gridDimX, config.blockDimX = launch.grid, launch.block
        config.gridDimY = config.gridDimZ = config.blockDimY = config.blockDimZ = 1
        config.sharedMemBytes = launch.shared
        config.hStream = driver.CUstream(stream or driver.CU_STREAM_LEGACY)  # torch's default stream is 0
        attributes = []
        if launch.cooperative:
            attributes.append(driver.CUlaunchAttribute())
            attributes[-1].id = kinds.CU_LAUNCH_ATTRIBUTE_COOPERATIVE
            attributes[-1].value.cooperative = 1
        if launch.cluster > 1:
            attributes.append(driver.CUlaunchAttribute())
            attributes[-1].id = kinds.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
            size = attributes[-1].value.clusterDim
            size.x, size.y, size.z = launch.cluster, 1, 1
        config.attrs, config.numAttrs = attributes, len(attributes)
        if len(self._configs) >= 64:
            self._configs.clear()
        self._configs[stream] = config
        return config


@_once
def _prepared(device: CudaDevice, launch: Launch) -> _Prepared:
    """The kernel, seen to fit the device, whose context is current."""
    core, _ = _cuda()
    kernel = _loaded(device, launch.source, launch.kernel)
    if launch.cluster > 1:
        # cuda-core counts the grid in clusters.
        config = core.LaunchConfig(
            grid=launch.grid // launch.cluster,
            cluster=launch.cluster,
            block=launch.block,
            shmem_size=launch.shared,
        )
        if kernel.occupancy.max_active_clusters(config, stream=core.LEGACY_DEFAULT_STREAM) < 1:
            raise Refused(f"no cluster of {launch.cluster} blocks of {launch.shared} bytes fits")
    return _Prepared(kernel, launch)


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
