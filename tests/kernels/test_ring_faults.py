"""Faults that a ring may have are put into a copy of the sources: each must be noticed."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from bnfold.nn import kernel_calls as kernels
from bnfold.nn import reference
from bnfold.nn.arguments import Saved
from tests.kernels.host import HostError, unavailable
from tests.kernels.machine import Switched, switchable
from tests.kernels.test_kernels import Case, close
from tests.kernels.test_ring import BACKWARD, SETTINGS, check, forward

REASON = unavailable()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")

PUT = "for (int u = 0; u < U; ++u) task.write(slot(write_at, u), to[u], channels, more[u]);"
COPY = "for (int u = 0; u < U; ++u) copy(slot(write_at, u), from[u]);"
ADD = "each_vector<Passes>(turn, [&](int u) { task.template add<!Passes>(slot(u), origins, noted[u]); });"
WRITE = "each_vector<false>(turn, [&](int u) { task.write(slot(u), to[u], channels, more[u]); });"
# Of a file: what is there, and what would be wrong.
FAULTS: dict[tuple[str, str], list[tuple[str, str]]] = {
    ("ring", "a wait too few"): [("port::wait_groups<kUnderWay>();", "port::wait_groups<kUnderWay + 1>();")],
    ("ring", "a wait too few in sums"): [
        ("port::wait_groups(left - i);", "port::wait_groups(left + 1 - i);"),
    ],
    ("ring", "a turn too many"): [("filled < size", "filled <= size")],
    ("ring", "filled before it was written"): [
        (PUT, f"if (!Sums) {PUT}"),
        (COPY, f"{COPY} {PUT.replace('int u', 'unsigned u')}"),
    ],
    ("ring", "one word"): [("words + k % 2", "words")],
    ("ring", "told before its word is free"): [("unit + (open ? 3 : 2)", "unit + 3")],
    ("long_ring", "a wait too few"): [("port::wait_groups(--under_way);", "port::wait_groups(under_way--);")],
    ("long_ring", "a turn too many"): [("i < size", "i < size + 1")],
    ("long_ring", "copied over what is not summed"): [
        (f"{ADD}\n            if (Passes) copy();", f"if (Passes) copy(); {ADD}"),
    ],
    ("long_ring", "copied over what is not written"): [
        (f"{WRITE}\n            copy();", f"copy(); {WRITE}"),
    ],
    ("long_ring", "copied over what stays"): [("if (Passes) copy();", "copy();")],
    ("long_ring", "written from other turns"): [("at = stay;", ";")],
    ("long_ring", "a turn more stays"): [
        ("most - least(size, most - 1)", "most - least(size, most - 1) - 1")
    ],
}


def faulty(path: Path, text: str) -> str:
    """A file with all its faults, one of which is chosen by a number when it runs."""
    for number, ((name, _), replaced) in enumerate(FAULTS.items()):
        for right, wrong in replaced if path.stem == name else ():
            assert right in text, right
            if right.endswith(";"):
                both = f"if (switched == {number}) {{ {wrong}\n}} else {{ {right}\n}}"
            else:
                both = f"(switched == {number} ? {wrong} : {right})"
            text = text.replace(right, both)
    return text


NONE = [("ring", "none"), ("long_ring", "none")]


@pytest.mark.parametrize("name", [*NONE, *FAULTS], ids=": ".join)
def test_each_fault_is_noticed(name: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    long, fault = name[0] == "long_ring", [*FAULTS].index(name) if name in FAULTS else -1
    settings = [SETTINGS["three turns more"], SETTINGS["three units"]]
    if long:
        settings = [BACKWARD["long: a turn passes"], BACKWARD["long: one block's ring holds all"]]
    noticed = set()
    for setting, seed in product(settings, range(8)):
        case = setting.case()
        machine = Switched(setting.machine().limits, seed, folder=switchable("ring", faulty), switched=fault)
        monkeypatch.setattr(kernels, "machine_of", lambda x, machine=machine: machine)
        try:
            if long:
                check_gradient(case)
            else:
                check(case, "plain", forward(machine, case, "plain", monkeypatch).results)
        except (HostError, AssertionError) as error:
            noticed.add(str(error))
            if fault >= 0:
                break
    assert bool(noticed) == (fault >= 0)


def check_gradient(case: Case) -> None:
    mean, var = reference.statistics(case.x.double())
    saved = Saved(case.x, None, case.weight, case.bias, mean.float(), var.rsqrt().float(), False)
    dx, _, dweight, dbias = kernels.backward(saved, case.dy, False, False)
    assert dx is not None
    dy, normal = case.dy.double(), (case.x.double() - mean) * var.rsqrt()
    sums = (dy * normal).sum(0), dy.sum(0)
    wanted = case.weight * var.rsqrt() * (dy - (sums[1] + normal * sums[0]) / len(dy))
    close(dx, wanted, 1e-5 * (1 + wanted.abs()))
    close(dweight, sums[0], 1e-5 * (dy * normal).abs().sum(0))
    close(dbias, sums[1], 1e-5 * dy.abs().sum(0))
