"""Launches as cuda-core gets them, and what is said of devices that cannot be used; cuda-core is played."""

from __future__ import annotations

import ctypes
import enum
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bnfold.kernels.compile import Compiled, KernelError, Refused
from bnfold.kernels.launch import Device, Launch
from tests.kernels.fresh import fresh

ORDINAL = 1
CONTEXT = 0xC1


class Status(enum.IntEnum):
    """Some of CUresult."""

    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_NO_DEVICE = 100


class Handle(int):
    """A CUkernel: a number, as the driver has it."""


class FakeCuda:
    """The parts of cuda-core and of the driver that device.py uses.

    done: calls in order, each with its arguments and the context that was current. contexts: their stack.
    """

    def __init__(self) -> None:
        self.done: list[tuple[Any, ...]] = []
        self.contexts = [0xC0]  # another device's
        self.version, self.capability = "1.0.1", (9, 0)
        self.properties = SimpleNamespace(
            multiprocessor_count=132,
            max_shared_memory_per_block_optin=232448,
            cluster_launch=True,
            cooperative_launch=True,
        )
        self.started = self.allowed = Status.CUDA_SUCCESS
        self.clusters: int | dict[int, int] = {2: 66, 4: 32, 8: 14}
        self.refusal: Exception | Status = Status.CUDA_SUCCESS
        self.arguments = 0  # how many the kernel takes

    def note(self, *what: Any) -> None:
        self.done.append((*what, self.contexts[-1] if self.contexts else 0))

    def calls(self, name: str) -> list[tuple[Any, ...]]:
        return [call[1:] for call in self.done if call[0] == name]

    def core(self) -> Any:
        def config(**arguments: Any) -> dict[str, Any]:
            return arguments

        def occupied(config: Any, *, stream: Any) -> int:
            self.note("occupancy", config, stream)
            return self.clusters if isinstance(self.clusters, int) else self.clusters[config["cluster"]]

        def kernel(cubin: bytes, symbol: str) -> Any:
            occupancy = SimpleNamespace(max_active_clusters=occupied)
            return SimpleNamespace(handle=Handle(len(cubin)), occupancy=occupancy)

        def device(ordinal: int) -> Any:
            return SimpleNamespace(properties=self.properties, compute_capability=self.capability)

        return SimpleNamespace(
            __version__=self.version,
            Device=device,
            LaunchConfig=config,
            ObjectCode=SimpleNamespace(
                from_cubin=lambda cubin: SimpleNamespace(get_kernel=lambda symbol: kernel(cubin, symbol)),
                from_ptx=lambda ptx: SimpleNamespace(get_kernel=lambda symbol: kernel(b"ptx", symbol)),
            ),
            LEGACY_DEFAULT_STREAM="default stream",
        )

    def driver(self) -> Any:
        def asked(attribute: str, value: int, handle: Any, ordinal: int) -> tuple[Status]:
            self.note("attribute", attribute, value, handle, ordinal)
            return (self.allowed,)

        def push(context: int) -> tuple[Status]:
            self.contexts.append(context)
            return (Status.CUDA_SUCCESS,)

        def exchanged(mode: str) -> tuple[Status, str]:
            self.note("mode", mode)
            return Status.CUDA_SUCCESS, "mode before"

        def noted(name: str, *given: Any) -> Callable[..., tuple[Any, ...]]:
            def call(*what: Any) -> tuple[Any, ...]:
                self.note(name, *what)
                return (self.allowed, *given)

            return call

        def launch(config: Any, function: Any, arguments: int, extra: int) -> tuple[Status]:
            if isinstance(self.refusal, Exception):
                raise self.refusal
            places = (ctypes.c_uint64 * self.arguments).from_address(arguments)
            bits = [ctypes.c_uint64.from_address(place).value for place in places]
            self.note("launch", vars(config), function, bits)
            return (self.refusal,)

        return SimpleNamespace(
            cuLaunchKernelEx=launch,
            CUlaunchConfig=lambda: (self.note("config"), SimpleNamespace())[1],
            CUlaunchAttribute=lambda: SimpleNamespace(value=SimpleNamespace(clusterDim=SimpleNamespace())),
            CUlaunchAttributeID=SimpleNamespace(
                CU_LAUNCH_ATTRIBUTE_COOPERATIVE="cooperative", CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION="cluster"
            ),
            CUstream=lambda address: ("stream", address),
            CUfunction=lambda address: ("function", address),
            CU_STREAM_LEGACY="default stream",
            cuThreadExchangeStreamCaptureMode=exchanged,
            CUstreamCaptureMode=SimpleNamespace(CU_STREAM_CAPTURE_MODE_RELAXED="relaxed"),
            CUstream_flags=SimpleNamespace(CU_STREAM_NON_BLOCKING="beside others"),
            cuMemAlloc=noted("allocate", 0xADD7),
            cuStreamCreate=noted("stream", "new stream"),
            cuMemsetD32Async=noted("zero"),
            cuStreamSynchronize=noted("wait"),
            cuStreamDestroy=noted("destroy"),
            cuInit=lambda flags: (self.started,),
            cuDevicePrimaryCtxRetain=lambda ordinal: (Status.CUDA_SUCCESS, 0xC0 + ordinal),
            cuCtxGetCurrent=lambda: (Status.CUDA_SUCCESS, self.contexts[-1] if self.contexts else 0),
            cuCtxPushCurrent=push,
            cuCtxPopCurrent=lambda: (Status.CUDA_SUCCESS, self.contexts.pop()),
            cuKernelSetAttribute=asked,
            CUfunction_attribute=SimpleNamespace(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES="shared"),
        )


@dataclass
class Setting:
    """device.py on a stand-in. compiled: what it asked to be compiled."""

    module: Any
    cuda: FakeCuda
    compiled: list[tuple[str, str, str]]

    def device(self) -> Any:
        return self.module.cuda_device(ORDINAL)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Setting:
    cuda = FakeCuda()
    parts: dict[str, Any] = {"core": cuda.core(), "bindings": SimpleNamespace(driver=cuda.driver())}
    package: Any = ModuleType("cuda")
    vars(package).update(parts)
    monkeypatch.setitem(sys.modules, "cuda", package)
    for name, part in parts.items():
        monkeypatch.setitem(sys.modules, f"cuda.{name}", part)
    setting = Setting(fresh("device"), cuda, [])

    def compiled(source: str, kernel: str, arch: str) -> Compiled:
        setting.compiled.append((source, kernel, arch))
        return Compiled(f"symbol of {kernel}", b"cubin", "")

    setting.module.compiled = compiled
    return setting


def launch_of(**changes: Any) -> Launch:
    plain = {
        "row": "one block",
        "source": "forward.cuh",
        "kernel": "bnfold::forward<...>",
        "width": 4,
        "grid": 24,
        "block": 512,
        "cluster": 1,
        "cooperative": False,
        "shared": 5000,
        "group": 1,
        "ranks": 1,
        "window": 512,
        "units": 24,
    }
    return Launch(**{**plain, **changes})


class Tensor:
    def data_ptr(self) -> int:
        return 0xDA7A


# devices


def test_the_limits_are_the_devices(fake: Setting) -> None:
    device = fake.device()
    limits = Device((9, 0), 132, 232448, clusters=8, cooperative=True, at_once=(66, 32, 14))
    assert (device.ordinal, device.arch, device.limits, device.context) == (1, "sm_90", limits, CONTEXT)
    assert fake.device() is device
    assert fake.cuda.contexts == [0xC0]  # looking at a device does not make it the current one
    sizes = [(size, 512, 232448) for size in (2, 4, 8)]
    asked = fake.cuda.calls("occupancy")  # once for each size, with all shared memory
    assert [(config["cluster"], config["block"], config["shmem_size"]) for config, _, _ in asked] == sizes
    assert {call[-1] for call in asked} == {CONTEXT}


def test_a_driver_that_does_not_tell_of_clusters(fake: Setting) -> None:
    fake.cuda.clusters = {}
    assert fake.device().limits == Device((9, 0), 132, 232448, clusters=8, cooperative=True)
    assert fake.cuda.contexts == [0xC0]


def test_multiprocessors_that_are_left_to_others(fake: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BNFOLD_SPARE_MULTIPROCESSORS", "4")
    assert fake.device().limits.spare == 4


@pytest.mark.parametrize("text", ["132", "-1", "a few"])
def test_a_number_of_them_that_is_none(fake: Setting, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BNFOLD_SPARE_MULTIPROCESSORS", text)
    wanted = f"cannot be used: BNFOLD_SPARE_MULTIPROCESSORS={text}: a number from 0 to 131 is needed$"
    with pytest.raises(KernelError, match=wanted):
        fake.device()


def test_a_device_without_clusters_and_cooperative_launches(fake: Setting) -> None:
    fake.cuda.capability = (7, 5)
    fake.cuda.properties.cluster_launch = fake.cuda.properties.cooperative_launch = False
    device = fake.device()
    assert (device.limits.clusters, device.limits.cooperative, device.arch) == (1, False, "sm_75")


def no_device(fake: Setting) -> None:
    fake.cuda.started = Status.CUDA_ERROR_NO_DEVICE


def too_old(fake: Setting) -> None:
    fake.cuda.capability = (7, 0)


def unknown(fake: Setting) -> None:
    fake.cuda.properties = None


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (no_device, "CUDA device 1 cannot be used: CUDA_ERROR_NO_DEVICE"),
        (too_old, "CUDA device 1 has compute capability 7.0: the kernels need 7.5"),
        (unknown, "CUDA device 1 cannot be used: 'NoneType' object has no attribute 'multiprocessor_count'"),
    ],
)
def test_a_device_that_cannot_be_used(fake: Setting, spoil: Callable[[Setting], None], text: str) -> None:
    spoil(fake)
    for _ in range(2):
        with pytest.raises(KernelError) as caught:
            fake.device()
        assert str(caught.value) == text


def test_no_driver() -> None:
    """What the cuda-core that is installed says on a machine without a GPU."""
    driver = pytest.importorskip("cuda.bindings.driver")
    try:
        driver.cuInit(0)
    except RuntimeError:
        pass
    else:
        pytest.skip("this machine has an NVIDIA driver")
    with pytest.raises(KernelError, match=r"^no NVIDIA driver can be loaded \(.*\)$"):
        fresh("device").cuda_device(0)


def test_cuda_core_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.core", None)
    with pytest.raises(KernelError, match=r"pip install '.*\[gpu\]' brings what compiles and launches"):
        fresh("device").cuda_device(0)


def test_cuda_core_is_too_old(fake: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    for version in ("0.6.0", "0.5.1"):
        monkeypatch.setattr(sys.modules["cuda.core"], "__version__", version)
        wanted = rf"^cuda-core >= 1.0 is needed, found {version}: pip install '.*\[gpu\]' brings it$"
        with pytest.raises(KernelError, match=wanted):
            fresh("device").cuda_device(0)


# launches


def test_a_launch(fake: Setting) -> None:
    numbers = (np.int64(-7), np.int32(-3), np.float32(0.5))
    device = fake.device()
    fake.cuda.done.clear()
    fake.cuda.arguments = 6
    device.launch(launch_of(), [Tensor(), None, Tensor()], numbers, 0x57)
    assert fake.compiled == [("forward.cuh", "bnfold::forward<...>", "sm_90")]
    kernel = len(b"cubin")
    assert fake.cuda.calls("attribute") == [("shared", 232448, kernel, ORDINAL, CONTEXT)]
    config = {
        **{f"gridDim{axis}": size for axis, size in zip("XYZ", (24, 1, 1), strict=True)},
        **{f"blockDim{axis}": size for axis, size in zip("XYZ", (512, 1, 1), strict=True)},
        "sharedMemBytes": 5000,
        "hStream": ("stream", 0x57),
        "attrs": [],
        "numAttrs": 0,
    }
    half = int.from_bytes(np.float32(0.5).tobytes(), "little")
    bits = [0xDA7A, 0, 0xDA7A, 2**64 - 7, 2**32 - 3, half]
    assert fake.cuda.calls("launch") == [(config, ("function", kernel), bits, CONTEXT)]


def attributes(config: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    assert config["numAttrs"] == len(config["attrs"])
    return [(each.id, vars(each.value)) for each in config["attrs"]]


def test_a_cooperative_launch_on_the_default_stream(fake: Setting) -> None:
    """The driver is not asked before whether its blocks fit: it refuses the launch itself."""
    fake.device()
    fake.cuda.done.clear()
    fake.device().launch(launch_of(cooperative=True), [], (), 0)
    ((config, *_),) = fake.cuda.calls("launch")
    assert config["hStream"] == ("stream", "default stream")
    ((name, value),) = attributes(config)
    assert (name, value["cooperative"]) == ("cooperative", 1)
    assert not fake.cuda.calls("occupancy")


def test_the_blocks_of_clusters(fake: Setting) -> None:
    device = fake.device()
    fake.cuda.done.clear()
    device.launch(launch_of(cluster=8), [], (), 0)
    config = {"grid": 3, "cluster": 8, "block": 512, "shmem_size": 5000}  # cuda-core counts in clusters
    assert fake.cuda.calls("occupancy") == [(config, "default stream", CONTEXT)]
    ((config, *_),) = fake.cuda.calls("launch")
    assert config["gridDimX"] == 24  # the driver in blocks
    ((name, value),) = attributes(config)
    assert (name, vars(value["clusterDim"])) == ("cluster", {"x": 8, "y": 1, "z": 1})


def test_numbers_that_change(fake: Setting) -> None:
    device = fake.device()
    fake.cuda.arguments = 2
    one, two = (np.int32(1),), [np.int32(2)]
    for numbers in (one, one, two, one):
        device.launch(launch_of(), [Tensor()], numbers, 0)
    two[0] = np.int32(3)
    device.launch(launch_of(), [Tensor()], two, 0)
    assert [bits for _, _, bits, _ in fake.cuda.calls("launch")] == [[0xDA7A, n] for n in (1, 1, 2, 1, 3)]


def test_threads_have_arguments_of_their_own(fake: Setting) -> None:
    """What a thread has put there stays until the driver has read it, whatever others launch meanwhile."""
    device, launch, other = fake.device(), launch_of(), threading.Thread
    fake.cuda.arguments = 1
    driver = sys.modules["cuda.bindings"].driver
    queue, turns = driver.cuLaunchKernelEx, iter([True])

    def interrupted(*given: Any) -> Any:
        if next(turns, False):  # the first launch is in the driver
            thread = other(target=device.launch, args=(launch, [], (np.int32(2),), 0))
            thread.start()
            thread.join()
        return queue(*given)

    driver.cuLaunchKernelEx = interrupted
    device.launch(launch, [], (np.int32(1),), 0)
    assert [bits for _, _, bits, _ in fake.cuda.calls("launch")] == [[2], [1]]


@pytest.mark.parametrize("current", [[], [0xC0], [CONTEXT]], ids=["none", "another", "its own"])
def test_the_devices_context_is_current(fake: Setting, current: list[int]) -> None:
    fake.cuda.contexts = list(current)
    device = fake.device()
    for _ in range(2):
        device.launch(launch_of(cluster=8), [], (), 0)
    assert {call[-1] for call in fake.cuda.done} == {CONTEXT}
    fake.cuda.refusal = ValueError("no")
    with pytest.raises(KernelError):
        device.launch(launch_of(), [], (), 0)
    assert fake.cuda.contexts == current


def test_a_kernel_is_prepared_once(fake: Setting) -> None:
    device = fake.device()
    fake.cuda.done.clear()
    for grid in (8, 8, 16):
        device.launch(launch_of(grid=grid), [], (), 0)
    assert len(fake.compiled) == len(fake.cuda.calls("attribute")) == 1
    assert len(fake.cuda.calls("config")) == 2
    assert len(fake.cuda.calls("launch")) == 3
    for stream in (5, 6, 5):
        device.launch(launch_of(grid=8), [], (), stream)
    assert len(fake.cuda.calls("config")) == 4
    assert [config["hStream"][1] for config, *_ in fake.cuda.calls("launch")[3:]] == [5, 6, 5]


def test_what_does_not_compile_is_not_compiled_again(fake: Setting) -> None:
    asked = []

    def compiled(*what: str) -> Compiled:
        asked.append(what)
        raise KernelError("it does not compile\nsomewhere")

    fake.module.compiled = compiled
    for grid in (8, 8, 16):
        with pytest.raises(KernelError, match=r"^it does not compile\nsomewhere$"):
            fake.device().launch(launch_of(grid=grid), [], (), 0)
    assert len(asked) == 1


def test_launches_that_are_refused(fake: Setting) -> None:
    device = fake.device()
    fake.cuda.refusal = ValueError("too\nlarge")
    together = {"alone": launch_of(), "grid": launch_of(cooperative=True), "cluster": launch_of(cluster=2)}
    for name, launch in together.items():
        wanted = r"^bnfold::forward<\.\.\.> cannot run on 24 blocks: too large$"
        with pytest.raises(KernelError, match=wanted) as caught:
            device.launch(launch, [], (), 0)
        assert isinstance(caught.value, Refused) == (name != "alone")
    fake.cuda.refusal = Status.CUDA_ERROR_INVALID_VALUE  # as the driver says it
    with pytest.raises(Refused, match=r"cannot run on 24 blocks: CUDA_ERROR_INVALID_VALUE$"):
        device.launch(launch_of(cooperative=True), [], (), 0)
    fake.cuda.refusal = Status.CUDA_SUCCESS
    device.launch(launch_of(), [], (), 0)  # the next one is tried
    fake.cuda.clusters = 0
    for _ in range(2):
        with pytest.raises(Refused, match=r"^no cluster of 4 blocks of 5000 bytes fits$"):
            device.launch(launch_of(cluster=4), [], (), 0)
    fake.cuda.allowed = Status.CUDA_ERROR_INVALID_VALUE
    with pytest.raises(KernelError, match="refused 232448 bytes of shared memory: CUDA_ERROR_INVALID_VALUE"):
        device.launch(launch_of(kernel="x"), [], (), 0)


# memory


def test_words_that_are_zero(fake: Setting) -> None:
    """Beside streams that are being captured, and before anybody can use them."""
    fake.device()
    fake.cuda.done.clear()
    assert fake.module.zeroed(ORDINAL, 1024) == 0xADD7
    assert fake.cuda.done == [
        ("mode", "relaxed", 0xC0),
        ("allocate", 4096, CONTEXT),
        ("stream", "beside others", CONTEXT),
        ("zero", 0xADD7, 0, 1024, "new stream", CONTEXT),
        ("wait", "new stream", CONTEXT),
        ("destroy", "new stream", CONTEXT),
        ("mode", "mode before", 0xC0),
    ]


def test_no_memory_for_words(fake: Setting) -> None:
    fake.device()
    fake.cuda.allowed = Status.CUDA_ERROR_INVALID_VALUE
    with pytest.raises(KernelError, match="device 1 has no memory for 8 words: CUDA_ERROR_INVALID_VALUE"):
        fake.module.zeroed(ORDINAL, 8)
    assert fake.cuda.calls("mode")[-1] == ("mode before", 0xC0)
    assert fake.cuda.contexts == [0xC0]
