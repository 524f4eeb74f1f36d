"""The plugin's `enqueue` on a GPU, without TensorRT: values, several streams and contexts, CUDA graphs."""

from __future__ import annotations

import threading

import pytest
import torch

from tests.gpu.device import CUDA, MARKS
from tests.plugins.build import for_a_gpu, harness, has_nvcc, prebuilt, unavailable
from tests.plugins.harness import OPS, Harness
from tests.plugins.memory import TYPES, Call, Case

pytestmark = MARKS

# Shape, and the format of float32; types of two bytes take the one of 8 channels.
SHAPES: dict[str, tuple[tuple[int, ...], str]] = {
    "one plane": ((1, 1, 112, 112), "LINEAR"),
    "planes for two blocks": ((16, 64, 56, 56), "LINEAR"),
    "large planes": ((2, 3, 500, 500), "LINEAR"),
    "odd planes": ((64, 64, 7, 7), "LINEAR"),
    "odd planes, odd channels": ((4, 3, 5, 7), "LINEAR"),
    "rows": ((512, 264), "LINEAR"),
    "three dimensions": ((2, 3, 4, 6, 8), "LINEAR"),
    "channels last": ((16, 72, 28, 28), "HWC"),
    "many channels last": ((64, 512, 14, 14), "HWC"),
    "channels last, padded": ((8, 21, 19, 23), "HWC"),
    "three dimensions, channels last": ((2, 20, 3, 5, 4), "DHWC"),
}
SEVERAL = ("one plane", "planes for two blocks", "channels last, padded")


@pytest.fixture(scope="module")
def driver() -> Harness:
    if (built := prebuilt()) is not None:
        return Harness(*built)
    if not has_nvcc():  # asked first: headers may have to be fetched
        pytest.skip("nvcc is not here to build the plugin, and $BNFOLD_PLUGIN_BUILT is not set")
    if (reason := unavailable()) is not None:
        pytest.skip(reason)
    return Harness(harness(), for_a_gpu(torch.cuda.get_device_capability()))


def case_of(op: str, shape: str, type_: str, **more: int) -> Case:
    size, kind = SHAPES[shape]
    if type_ != "float32" and kind != "LINEAR":
        kind += "8"
    return Case(op, size, type_, kind, device=CUDA, **more)


def good(call: Call) -> None:
    torch.cuda.synchronize()
    assert call.excess() <= 1, f"{call.case}: {call.excess():.2f} times the room"


def run(driver: Harness, case: Case) -> Call:
    """The call, right."""
    call = Call(driver, case)
    torch.cuda.synchronize()
    assert call.plugin.supports(*call.told)
    assert call.plugin.change(*call.told) == 0, driver.log()
    assert call.enqueue(torch.cuda.current_stream().cuda_stream) == 0, driver.log()
    good(call)
    return call


@pytest.mark.parametrize("type_", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_values(driver: Harness, shape: str, type_: str) -> None:
    for op in OPS:
        call = run(driver, case_of(op, shape, type_))
        first = call.y.bytes.clone()
        call.workspace.bytes.fill_(7)  # others use it in between
        call.y.bytes.fill_(255)
        torch.cuda.synchronize()
        assert call.enqueue() == 0, driver.log()
        good(call)
        assert torch.equal(call.y.bytes, first), "not the same bits again"


@pytest.mark.parametrize("type_", TYPES)
def test_memory_that_is_not_aligned(driver: Harness, type_: str) -> None:
    for op in ("BnfoldBatchNormAddRelu", "BnfoldBatchStatNormAddRelu"):
        for shape in SHAPES:
            run(driver, case_of(op, shape, type_, misaligned=1))


@pytest.mark.parametrize("sets", [(4, 4), (1, 4)])
@pytest.mark.parametrize("type_", TYPES)
def test_a_set_for_each_sample(driver: Harness, type_: str, sets: tuple[int, int]) -> None:
    for shape in ((4, 64, 32, 32), (4, 33, 7, 7), (4, 100)):
        for op in OPS[:4]:
            run(driver, Case(op, shape, type_, sets=sets, device=CUDA))


def test_streams_and_contexts_do_not_meet(driver: Harness) -> None:
    """Each thread has a stream, copies of the plugins and workspaces of its own, as contexts have."""
    lanes = []
    for _ in range(3):
        calls = [Call(driver, case_of("BnfoldBatchStatNormAddRelu", shape, "float16")) for shape in SEVERAL]
        for call in calls:
            call.plugin = call.plugin.attach()
        lanes.append((torch.cuda.Stream(), calls))
    torch.cuda.synchronize()
    statuses: list[int] = []

    def work(stream: torch.cuda.Stream, calls: list[Call]) -> None:
        torch.cuda.set_device(0)
        for _ in range(50):
            statuses.extend(call.enqueue(stream.cuda_stream) for call in calls)

    threads = [threading.Thread(target=work, args=lane) for lane in lanes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) == {0}, driver.log()
    assert len(statuses) == 3 * 50 * len(SEVERAL)
    for _, calls in lanes:
        for call in calls:
            good(call)


@pytest.mark.parametrize("op", ["BnfoldBatchNormAddRelu", "BnfoldBatchStatNormAddRelu"])
@pytest.mark.parametrize("shape", SEVERAL)
def test_a_cuda_graph(driver: Harness, shape: str, op: str) -> None:
    call = run(driver, case_of(op, shape, "bfloat16"))
    first = call.y.bytes.clone()
    x = call.tensors[0].bytes.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        assert call.enqueue(torch.cuda.current_stream().cuda_stream) == 0, driver.log()
    for values in (torch.zeros_like(x), x):
        call.tensors[0].bytes.copy_(values)
        call.workspace.bytes.fill_(255)
        call.y.bytes.fill_(255)
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(call.y.bytes, first) == (values is x)
    good(call)
