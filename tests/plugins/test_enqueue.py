"""What `enqueue` launches, run on the CPU: values against float64, the workspace, what the machine is asked.

The plugin, its plan, its arguments and its workspace are those of a GPU; only the machine behind is another.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import pytest

from bnfold.kernels.launch import Device
from tests.kernels.machine import DEVICES
from tests.plugins.build import harness, on_the_cpu, unavailable
from tests.plugins.harness import OPS, Harness
from tests.plugins.harness import Tensor as Told
from tests.plugins.memory import TYPES, Call, Case
from tests.plugins.test_plan import at_once

REASON = unavailable()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")

# Shape and format, by what of the kernels and of the workspace they reach.
SHAPES: dict[str, tuple[tuple[int, ...], str]] = {
    "planes of whole vectors": ((3, 5, 16, 24), "LINEAR"),
    "odd planes together": ((16, 16, 7, 7), "LINEAR"),
    "odd planes, odd channels": ((40, 3, 15, 17), "LINEAR"),
    "rows": ((70, 40), "LINEAR"),
    "rows of odd length": ((400, 7), "LINEAR"),
    "a sequence": ((4, 6, 37), "LINEAR"),
    "many dimensions": ((2, 3, 2, 3, 1, 2, 2, 2), "LINEAR"),
    "channels last": ((3, 24, 9, 5), "HWC"),
    "channels last, padded": ((3, 21, 9, 5), "HWC"),
    "channels last in three dimensions": ((2, 16, 3, 5, 4), "DHWC"),
}
IN_HALF = {"HWC": "HWC8", "DHWC": "DHWC8"}  # the format of these for types of two bytes


class Machine:
    """The machine of machine_host.cpp."""

    def __init__(self) -> None:
        self.opened = ctypes.CDLL(str(on_the_cpu()))
        self.opened.machine_asked.restype = ctypes.c_char_p

    def be(self, device: Device, refuse: int = 0, seed: int = 0) -> None:
        limits = (device.multiprocessors, ctypes.c_longlong(device.shared_memory), device.clusters)
        ways = (device.cooperative, at_once(device))
        self.opened.machine_set(*limits, *ways, refuse, ctypes.c_ulonglong(seed))

    def asked(self) -> list[str]:
        """Since the last call: "zero", "copy", "kept", or a row of the launch table."""
        return str(self.opened.machine_asked(), "utf-8").splitlines()


@pytest.fixture
def machine() -> Machine:
    machine = Machine()
    machine.asked()
    return machine


@pytest.fixture(scope="module")
def driver() -> Harness:
    return Harness(harness(), on_the_cpu())


def run(driver: Harness, case: Case) -> Call:
    """The call, right."""
    call = Call(driver, case)
    assert call.plugin.supports(*call.told)
    assert call.plugin.change(*call.told) == 0
    assert call.enqueue() == 0, driver.log()
    assert call.excess() <= 1, f"{case}: {call.excess():.2f} times the room"
    return call


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", SHAPES)
def test_values(driver: Harness, machine: Machine, name: str, device: str) -> None:
    shape, kind = SHAPES[name]
    machine.be(DEVICES[device], seed=1)
    for number, op in enumerate(OPS):
        type_ = list(TYPES)[number % 3]  # each op with each type, over the shapes
        run(driver, Case(op, shape, type_, kind if type_ == "float32" else IN_HALF.get(kind, kind)))


@pytest.mark.parametrize("type_", TYPES)
@pytest.mark.parametrize("op", OPS)
def test_each_op_in_each_type(driver: Harness, machine: Machine, op: str, type_: str) -> None:
    machine.be(DEVICES["cooperative grid"], seed=2)
    run(driver, Case(op, (2, 3, 40, 40), type_))


def test_every_row_is_taken(driver: Harness, machine: Machine) -> None:
    seen: set[str] = set()
    for device in DEVICES.values():
        machine.be(device)
        for shape in ((1, 1, 112, 112), (3, 5, 16, 24)):
            for op in ("BnfoldBatchNorm", "BnfoldBatchStatNorm"):
                run(driver, Case(op, shape))
        seen |= {*machine.asked()}
    assert seen == {"one block", "cluster", "cooperative grid", "one block, windows", "stream", "zero"}


# what lies in the workspace


def test_words_are_zeroed_for_each_launch_of_a_whole_grid(driver: Harness, machine: Machine) -> None:
    machine.be(DEVICES["cooperative grid"])
    call = run(driver, Case("BnfoldBatchStatNorm", (1, 1, 112, 112)))
    assert machine.asked() == ["zero", "cooperative grid"]
    call.workspace.bytes.fill_(7)  # others use it in between
    assert call.enqueue() == 0
    assert call.excess() <= 1
    machine.be(DEVICES["cluster"])
    machine.asked()
    assert call.enqueue() == 0
    assert machine.asked() == ["cluster"]


@pytest.mark.parametrize("type_", ["float16", "bfloat16"])
@pytest.mark.parametrize("op", ["BnfoldBatchNormAddRelu", "BnfoldBatchStatNormAdd"])
def test_padded_channels(driver: Harness, machine: Machine, op: str, type_: str) -> None:
    machine.be(DEVICES["one block"])
    run(driver, Case(op, (3, 21, 9, 5), type_, "HWC8"))
    assert machine.asked()[:4] == ["zero", "copy", "zero", "copy"]
    run(driver, Case(op, (3, 24, 9, 5), type_, "HWC8"))
    assert "copy" not in machine.asked()


@pytest.mark.parametrize("sets", [(4, 4), (1, 4), (4, 1)])
@pytest.mark.parametrize("shape", [(4, 6, 5, 8), (4, 6), (4, 3, 7, 7)])
def test_a_set_for_each_sample(
    driver: Harness, machine: Machine, shape: tuple[int, ...], sets: tuple[int, int]
) -> None:
    machine.be(DEVICES["one block"])
    for number, op in enumerate(OPS[:4]):
        run(driver, Case(op, shape, list(TYPES)[number % 3], sets=sets))
        # One that all samples share is repeated.
        assert machine.asked().count("copy") == (0 if sets == (4, 4) else 4)


@pytest.mark.parametrize("op", ["BnfoldBatchNormAddRelu", "BnfoldBatchStatNormAddRelu"])
@pytest.mark.parametrize("type_", TYPES)
def test_memory_that_is_not_aligned(driver: Harness, machine: Machine, op: str, type_: str) -> None:
    machine.be(DEVICES["cluster"])
    for shape, kind in SHAPES.values():
        run(
            driver,
            Case(op, shape, type_, kind if type_ == "float32" else IN_HALF.get(kind, kind), misaligned=1),
        )


def smaller(case: Case, least: int, most: int) -> list[Told]:
    """The inputs and the output as a builder tells of them where the first dimension is not known."""
    told = case.told()
    one = case.parameter(1)
    for place, each in enumerate(told):
        if each.shape == one and place in (1, 2):
            continue
        shape = each.shape[1:]
        told[place] = Told((-1, *shape), each.type, each.format, (least, *shape), (most, *shape))
    return told


@pytest.mark.parametrize("op", ["BnfoldBatchNormAdd", "BnfoldBatchStatNormRelu"])
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_a_batch_that_is_not_known(driver: Harness, machine: Machine, op: str, batch: int) -> None:
    for device in DEVICES.values():
        machine.be(device)
        for sets in ((1, 1), (batch, batch), (1, batch)) if op in OPS[:4] else ((1, 1),):
            case = Case(op, (batch, 5, 16, 24), "float16", sets=sets)
            call = Call(driver, case, smaller(case, 1, 8))
            assert call.plugin.change(*call.told) == 0, driver.log()
            assert call.enqueue() == 0, driver.log()
            assert call.excess() <= 1


def test_what_is_empty_is_left(driver: Harness, machine: Machine) -> None:
    machine.be(DEVICES["one block"])
    for op in ("BnfoldBatchNorm", "BnfoldBatchStatNorm"):
        case = Case(op, (0, 5, 16, 24))
        call = Call(driver, case)
        assert call.enqueue() == 0
    assert machine.asked() == []


# a machine that refuses


REFUSALS: dict[str, tuple[int, list[str]]] = {
    "clusters": (1, ["refused cluster", "zero", "cooperative grid", "kept"]),
    "both": (3, ["refused cluster", "zero", "refused cooperative grid", "one block, windows", "kept"]),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_where_blocks_find_no_room_together(driver: Harness, machine: Machine, what: str) -> None:
    refuse, wanted = REFUSALS[what]
    """Remembered: later calls, as in a CUDA graph that is captured, try nothing that was refused."""
    machine.be(Device((9, 0), 6, 24 * 1024, 8, True), refuse)
    run(driver, Case("BnfoldBatchStatNorm", (1, 1, 112, 112)))
    assert machine.asked() == wanted
    run(driver, Case("BnfoldBatchStatNorm", (1, 1, 112, 112)))
    assert [each for each in machine.asked() if each != "zero"] == [wanted[-2]]


def test_clusters_that_never_fit_are_not_tried(driver: Harness, machine: Machine) -> None:
    case = Case("BnfoldBatchStatNorm", (1, 1, 112, 112))
    for told, row in (((3, 1, 1), "cluster"), ((0, 0, 0), "cooperative grid")):
        machine.be(Device((9, 0), 6, 24 * 1024, 8, True, told))
        run(driver, case)
        assert [each for each in machine.asked() if each != "zero"] == [row]


def test_a_launch_that_fails_is_told(driver: Harness, machine: Machine) -> None:
    machine.be(DEVICES["one block"], refuse=4)
    fails: list[Callable[[], int]] = [
        Call(driver, Case(op, (3, 5, 16, 24))).enqueue for op in ("BnfoldBatchNorm", "BnfoldBatchStatNorm")
    ]
    driver.log()
    assert [fail() for fail in fails] == [1, 1]
    assert "kept" not in machine.asked()
    assert driver.log() == "1 BnfoldBatchNorm 'node': no room\n1 BnfoldBatchStatNorm 'node': no room\n"
