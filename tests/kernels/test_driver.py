"""Every row of the table, launched by the real bindings on a driver that records and runs nothing.

What a kernel takes is read by that driver (driver.cpp) from the cubin itself: a number of another size, or an
argument more or less, shows here, and nowhere else without a GPU.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from bnfold.kernels.launch import KERNELS, ROWS
from tests.kernels import recorded
from tests.kernels.host import HERE, unavailable

REASON = unavailable()
pytestmark = [
    pytest.mark.skipif(REASON is not None, reason=REASON or ""),
    pytest.mark.xdist_group("recording driver"),
]


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    """What recorded.py tells, from a process of its own."""
    pytest.importorskip("cuda.core", reason="what launches the kernels comes with the extra `gpu`")
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.recorded"], cwd=HERE.parents[1], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def launches(calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [each for each in calls if each["call"] == "launch"]


def test_every_kernel_is_launched_by_every_row(told: dict[str, Any]) -> None:
    taken = {(each["source"], each["row"]) for found in told["rows"].values() for each in found["given"]}
    rows = {row.name for row in ROWS}
    assert rows == recorded.ROWS.keys()
    for kernel in KERNELS.values():
        wanted = rows if kernel.staged else {"stream"}
        assert {row for source, row in taken if source == kernel.source} == wanted


@pytest.mark.parametrize("row", recorded.ROWS)
def test_arguments_are_what_the_kernel_takes(told: dict[str, Any], row: str) -> None:
    given, seen = told["rows"][row]["given"], launches(told["rows"][row]["seen"])
    assert len(given) == len(seen) == 6
    for wanted, found in zip(given, seen, strict=True):
        assert found["kernel"] == wanted["symbol"]
        assert found["sizes"] == wanted["sizes"]
        assert found["arguments"] == wanted["arguments"]


@pytest.mark.parametrize("row", recorded.ROWS)
def test_the_launch_is_the_one_of_the_table(told: dict[str, Any], row: str) -> None:
    given, seen = told["rows"][row]["given"], launches(told["rows"][row]["seen"])
    for wanted, found in zip(given, seen, strict=True):
        assert found["grid"] == [wanted["grid"], 1, 1]  # blocks, not clusters
        assert found["block"] == [wanted["block"], 1, 1]
        assert (found["shared"], found["cluster"]) == (wanted["shared"], wanted["cluster"])
        assert (found["cooperative"], found["others"]) == (wanted["cooperative"], [])
    assert any(found["cluster"] > 1 for found in seen) == (row == "cluster")
    together = ("ring", "long ring", "cooperative grid")
    assert any(found["cooperative"] for found in seen) == (row in together)


def test_all_shared_memory_is_allowed_before_the_first_launch(told: dict[str, Any]) -> None:
    allowed: dict[str, int] = {}
    for found in told["rows"].values():
        for each in found["seen"]:
            if each["call"] == "allow" and each["kernel"] != "idle":  # which is asked how many clusters fit
                allowed[each["kernel"]] = each["bytes"]
            elif each["call"] == "launch":
                assert allowed[each["kernel"]] >= each["shared"]
    assert len(allowed) == 12  # forward and backward by three exchanges and two rings, and two that have none
    assert max(allowed.values()) == 232448


def test_streams(told: dict[str, Any]) -> None:
    """0 is torch's default stream; for the driver that is 1, the legacy one."""
    assert [each["stream"] for each in launches(told["streams"])] == [1, 0xABC0, 0xDEF0, 0xABC0]


def test_a_thread_without_a_context_gets_one_for_the_launch(told: dict[str, Any]) -> None:
    calls = [(each["call"], each["context"]) for each in told["threads"]]
    assert calls == [("push", 0), ("launch", 0), ("pop", -1)]


def test_another_device_beside_the_current_one(told: dict[str, Any]) -> None:
    found = told["devices"]
    calls = [(each["call"], each["context"]) for each in found["seen"] if each["call"] != "allow"]
    assert calls == [("push", 1), ("launch", 1), ("pop", 0), ("launch", 0)]
    on_it, on_the_first = launches(found["seen"])
    limits = {"capability": [8, 0], "multiprocessors": 108, "shared_memory": 166912, "clusters": 1}
    assert found["limits"] == {**found["limits"], **limits, "at_once": []}
    assert found["first"]["at_once"] == [66, 33, 16]  # clusters of 2, 4 and 8, a block a multiprocessor
    assert on_it["grid"][0] <= 108 < on_the_first["grid"][0] <= 132


def test_what_the_driver_refuses_is_told_and_another_launch_stands_in(told: dict[str, Any]) -> None:
    no_cluster, not_together = told["refusals"]["said"]
    assert "clusters of blocks run together: ring stands in" in no_cluster
    assert "(no cluster of 8 blocks of " in no_cluster
    assert "grids of blocks run together: one block, windows stands in" in not_together
    assert "CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE" in not_together
    assert told["refusals"]["launches"] == 2
