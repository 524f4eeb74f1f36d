"""What NVRTC makes of the kernels, run on the CPU: the tests of their values, on PTX instead of the source.

A share runs always, in which each layout, width, exchange and type occurs, and each architecture. All tests
of tests/kernels/test_kernels.py that look at values run with `BNFOLD_PTX=all` (or "sm_80 sm_90") in the
environment of pytest, for the three architectures in about half an hour.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from itertools import product

import pytest
import torch

from bnfold.kernels.launch import CLUSTERS, COPIES, KERNELS, SIZES, Device, instances
from bnfold.nn import kernel_calls as kernels
from bnfold.nn import reference
from bnfold.nn.arguments import Arguments, Running
from tests.kernels import test_kernels as values
from tests.kernels.host import HostError, unavailable
from tests.kernels.machine import DEVICES
from tests.kernels.ptx.compiled import Change, PtxMachine
from tests.kernels.ptx.parse import PtxError
from tests.kernels.test_ring import BACKWARD, SETTINGS

REASON = unavailable()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")
pytest.importorskip("cuda.bindings", reason="the compiler comes with the extra `gpu`")

ARCHITECTURES = {"sm_75": (7, 5), "sm_80": (8, 0), "sm_90": (9, 0)}
CHOSEN = os.environ.get("BNFOLD_PTX", "").replace("all", " ".join(ARCHITECTURES)).split()

# Architecture, device of machine.py or a ring's, shape (or setting of test_ring.py) and type.
SHARE = [
    ("sm_90", "cooperative grid", "one image, channels last", torch.bfloat16),
    ("sm_75", "cooperative grid", "one image, channels last", torch.bfloat16),
    ("sm_90", "cluster", "one image, channels last", torch.float16),
    ("sm_80", "cooperative grid", "many odd planes", torch.bfloat16),
    ("sm_80", "one block, windows", "large planes", torch.float32),
    ("sm_90", "cluster", "rows of odd length", torch.float32),
    ("sm_75", "one block, windows", "odd planes, odd channels", torch.float16),
    ("sm_80", "forward ring", "two bytes", torch.bfloat16),
    ("sm_90", "backward ring", "two bytes", torch.bfloat16),
    ("sm_80", "backward ring", "long: two bytes", torch.float16),
    ("sm_90", "forward ring", "long: planes", torch.float32),
]


def machine_for(arch: str, device: str | Device, monkeypatch: pytest.MonkeyPatch) -> PtxMachine:
    machine = PtxMachine(DEVICES[device] if isinstance(device, str) else device, arch=arch)
    monkeypatch.setattr(kernels, "machine_of", lambda x: machine)
    return machine


def readings(names: list[str]) -> set[tuple[str, ...]]:
    """Of instances: layout and width, exchange, type, each for itself."""
    found: set[tuple[str, ...]] = set()
    for name in names:
        kernel, inside = name.removeprefix("bnfold::").rstrip(">").split("<")
        activations, *rest = inside.split(", ")
        width, *enums = rest[KERNELS[kernel].types - 1 :]
        one = "1" if width == "1" else "vectors"
        found |= {(kernel, "type", activations), (kernel, "reading", one, enums[0])}
        found |= {(kernel, *enums[1:])}
    return found


ran: list[str] = []


@pytest.mark.xdist_group("ptx")
@pytest.mark.parametrize(
    ("arch", "device", "name", "kind"), SHARE, ids=lambda each: str(each).replace("torch.", "")
)
def test_a_share(
    arch: str, device: str, name: str, kind: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = {"forward ring": SETTINGS, "backward ring": BACKWARD}.get(device, {}).get(name)
    machine = machine_for(arch, device if ring is None else ring.machine().limits, monkeypatch)
    case = values.Case.drawn(*values.SHAPES[name], kind) if ring is None else ring.case()
    machine.seed = 1  # copies are made late
    values.check(case, relu=True, summed=True)
    machine.seed = 5  # at once
    values.check(case, relu=False, summed=False)
    ran.extend(launch.kernel for launch in machine.launches)


@pytest.mark.xdist_group("ptx")
def test_the_share_has_everything() -> None:
    if not ran:
        pytest.skip("the share has not run in this process")
    every = [name for kernel in KERNELS for name in instances(kernel, (9, 0))]
    assert readings(every) == readings(ran)
    assert {arch for arch, *_ in SHARE} == ARCHITECTURES.keys()
    assert len({kind for *_, kind in SHARE}) == len(SIZES)


# what has to be seen: forward on 72 channels, with its PTX changed


def without(opcode: str, number: int) -> Change:
    """The PTX without one of the instructions that begin so."""
    return replaced(rf"^\s+{re.escape(opcode)}\b[^\n;]*;", "", number)


def replaced(pattern: str, by: str, number: int | None = None) -> Change:
    """The PTX with another text in one place, or in all."""

    def changed(text: str) -> str:
        found = list(re.finditer(pattern, text, re.MULTILINE))
        for each in reversed(found if number is None else [found[number]]):
            text = text[: each.start()] + each.expand(by) + text[each.end() :]
        return text

    return changed


MUTANTS: dict[str, tuple[str, Change]] = {
    "the first barrier is missing": ("cooperative grid", without("bar.sync", 0)),
    "the last barrier is missing": ("cooperative grid", without("bar.sync", -1)),
    "operands are swapped": (
        "cooperative grid",
        replaced(r"sub\.f32 (\s*%\w+), (%\w+), (%\w+)", r"sub.f32 \1, \3, \2"),
    ),
    "too much is added to the word": (
        "cooperative grid",
        replaced(r"(atom\S*\s+\S+ \[.*\]), \S+;", r"\1, 3;", 0),
    ),
    "nobody waits for the cluster": ("cluster", without("barrier.cluster.wait", 0)),
    "a peer is another": ("cluster", replaced(r"(mapa\.u64\s+\S+ \S+) %r\d+;", r"\1 0;")),
    "another rounding": ("cluster", replaced(r"cvt\.rn\.(b?f16)", r"cvt.rz.\1", 0)),
    "an address is 16 bytes off": (
        "cluster",
        replaced(r"(ld\.global\.nc\S*\.v4\S*\s+\{.*\}, \[%rd\d+)", r"\1+16"),
    ),
}


@pytest.mark.xdist_group("ptx")
@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_are_seen(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device, change = MUTANTS[mutant]
    machine = machine_for("sm_90", device, monkeypatch)
    machine.change, machine.seed = change, 2
    case = values.Case.drawn(*values.SHAPES["one image, channels last"], torch.float16)
    given = Arguments(case.x, None, case.weight, case.bias)
    wide = Arguments(*(each if each is None else each.double() for each in given[:4]))
    wanted, mean, invstd = reference.forward(wide, Running())
    seen = (AssertionError, HostError, PtxError)
    with pytest.raises(seen):  # noqa: PT012
        y, found, inverse, _ = kernels.forward(given, Running())
        values.close(y, wanted, case.off() * reference.wide(case.weight.abs(), case.x))
        values.close(found, mean)
        values.close(inverse, invstd, 1e-5 * invstd)


if CHOSEN:
    # The tests are taken over as they are; here `machine` runs PTX.
    TAKEN = [
        values.test_values_and_gradients,
        values.test_bfloat16,
        values.test_parameters_of_the_activations_type,
        values.test_a_mean_far_from_zero,
        values.test_the_first_value_far_from_the_others,
        values.test_constant_input_is_normalized_to_zero,
        values.test_what_is_no_number_stays_none,
        values.test_absent_parameters_and_statistics,
        values.test_the_average_over_batches,
        values.test_tensors_that_are_not_aligned,
        values.test_the_same_bits_under_every_schedule,
    ]
    globals().update({each.__name__: each for each in TAKEN})

    @pytest.fixture(params=DEVICES)
    def machine(request: pytest.FixtureRequest, arch: str, monkeypatch: pytest.MonkeyPatch) -> PtxMachine:
        """Runs the PTX, as a device that takes another row of the launch table each."""
        found = machine_for(arch, request.param, monkeypatch)
        if ARCHITECTURES[arch] < CLUSTERS:
            found.limits = replace(found.limits, capability=ARCHITECTURES[arch], clusters=1)
        return found

    RINGS = [*product(["forward"], SETTINGS), *product(["backward"], BACKWARD)]

    @pytest.mark.parametrize(("kernel", "name"), RINGS)
    def test_rings(kernel: str, name: str, arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
        if ARCHITECTURES[arch] < COPIES:
            pytest.skip("a ring needs copies that go on by themselves")
        setting = {"forward": SETTINGS, "backward": BACKWARD}[kernel][name]
        limits = replace(setting.machine().limits, capability=ARCHITECTURES[arch])
        machine, case = machine_for(arch, limits, monkeypatch), setting.case()
        for machine.seed, how in zip((1, 5, 3), ((True, True), (False, False), (True, False)), strict=True):
            values.check(case, *how)
        assert sum(launch.kernel.endswith(setting.exchange) for launch in machine.launches) >= 3

    @pytest.fixture(params=CHOSEN)
    def arch(request: pytest.FixtureRequest) -> str:
        chosen: str = request.param
        return chosen
