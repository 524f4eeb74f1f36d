"""The order of tools/gpu_check, its limits of time, and all of it from end to end on the recording driver."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from bnfold.kernels.launch import ROWS, Device
from tests.kernels.host import unavailable
from tests.plugins import build
from tools._common import ROOT
from tools._gpu import check, counters, preflight, steps, wheels
from tools._gpu.results import Results

REASON = unavailable()
H200 = Device(
    (9, 0), multiprocessors=132, shared_memory=232448, clusters=8, cooperative=True, at_once=(66, 33, 16)
)
T4 = Device((7, 5), multiprocessors=40, shared_memory=65536, clusters=1, cooperative=True)
A100 = Device((8, 0), multiprocessors=108, shared_memory=166912, clusters=1, cooperative=True)


def recorded(refused: str, output: Path) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """A run of gpu_check where the driver refuses something, and the file that it wrote."""
    pytest.importorskip("cuda.core", reason="what launches the kernels comes with the extra `gpu`")
    command = [sys.executable, "-m", "tests.tools.recorded_check", refused, "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert output.exists(), done.stderr
    return done, json.loads(output.read_text())


@pytest.mark.skipif(REASON is not None, reason=REASON or "")
def test_all_of_it_on_the_recording_driver(tmp_path: Path) -> None:
    done, data = recorded("nothing", tmp_path / "gpu.json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert data["errors"] == {}
    assert list(data["steps"]) == ["preflight", "kernels", "first", "counters", "tests", "bench"]
    ways = data["preflight"]["ways"]
    assert set(ways) >= {*(f"{row.name}, bfloat16 channels_last" for row in ROWS)}
    assert all(each["failure"] == "" for each in ways.values())
    assert data["preflight"]["limits"]["at_once"] == [66, 33, 16]
    kernels = {way: each["rows"]["backward"] for way, each in ways.items() if "rows" in each}
    assert "Exchange::cluster" in kernels["cluster, bfloat16 channels_last"]
    assert "Exchange::grid" in kernels["cooperative grid, bfloat16 channels_last"]
    assert ways["cooperative grid on two streams"]["launches"] == 2 * preflight.TURNS
    assert {"copy", "memory", "overhead", "compiled", "tests", "counters"} <= data.keys()
    assert len(data["cases"]) == 3
    assert all({*each["us"]["forward"]} == {"bnfold", "native", "compile"} for each in data["cases"].values())


@pytest.mark.skipif(REASON is not None, reason=REASON or "")
def test_it_ends_where_nothing_launches(tmp_path: Path) -> None:
    done, data = recorded("everything", tmp_path / "gpu.json")
    assert done.returncode == 1
    assert "CUDA_ERROR_INVALID_VALUE" in data["errors"]["preflight"]
    assert "Nothing else is tried." in done.stdout
    assert "cases" not in data
    assert "compiled" not in data


# the table


def test_what_would_run_is_listed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--list"])
    assert check.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [*check._WORK, "all"]
    assert "36 cases: bfloat16, channels last, batch 128" in lines[3]
    total = float(lines[-1].split()[1])
    assert total <= check.SECONDS < 330
    whole = steps.steps(check.PARTS)
    assert sum(each.predicted for each in whole) < 250  # what is left is for the other measurements
    assert whole[0].predicted < whole[0].most <= 40


def test_a_step_gets_what_those_behind_it_do_not_need() -> None:
    first = steps.Step("first", "bench", "", predicted=20)
    short = steps.Step("preflight", "preflight", "", predicted=10, most=40)
    last = steps.Step("tests", "tests", "", predicted=100)
    assert steps.limit(last, [], 320) == 320
    assert steps.limit(first, [last], 320) == 220
    assert steps.limit(first, [last], 110) == 30  # half again of its prediction
    assert steps.limit(first, [last], 25) == 25
    assert steps.limit(short, [first, last], 320) == 40


def test_what_is_asked_for_gets_all_the_time() -> None:
    tests, *others = steps.steps(["tests"])
    assert not others
    assert steps.limit(tests, others, 540) == 540
    (bench,) = steps.steps(["bench"], ["--type", "float16"])  # no other measurement before it
    assert (bench.name, bench.filling) == ("bench", True)
    assert [each.name for each in steps.steps(["tests", "kernels"])] == ["kernels", "tests"]
    ours, rest = check.parsed(["--parts", "tests", "--seconds", "100"])
    assert (ours.parts, ours.seconds, rest) == (["tests"], 100, [])


def test_a_step_is_logged_and_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "LOGS", tmp_path / "logs")
    assert check.ended("this", [], 3600) == 0
    zen = (tmp_path / "logs" / "this.log").read_text()
    assert zen.startswith("The Zen of Python")
    assert capsys.readouterr().out == zen
    with pytest.raises(RuntimeError, match="it did not end in 0 s"):
        check.ended("http.server", ["--bind", "127.0.0.1", 0], 0)


# the preflight


@pytest.mark.parametrize("limits", [H200, A100, T4])
def test_each_way_to_launch_is_tried(limits: Device) -> None:
    rows = {row.name for row in ROWS if row.exchange != "cluster" or limits.clusters > 1}
    if limits is T4:  # without copies that go on by themselves
        rows -= {row.name for row in ROWS if "ring" in row.exchange}
    ways = preflight.ways(limits)
    assert {way.row for way in ways} == rows
    for kind in preflight.KINDS:  # a ring is for channels last
        own = {way.row for way in ways if (way.case.type, way.case.layout) == kind}
        assert {"one block", "cooperative grid", "one block, windows"} <= own
    launched = preflight.kernels(ways, limits)
    assert {source for source, _ in launched} == {"forward.cuh", "backward.cuh", "apply.cuh"}
    assert len(ways) == len({way.name for way in ways})


@pytest.mark.parametrize(
    ("status", "ways", "raised"),
    [
        (0, {"ring": ""}, None),
        (1, {"ring": "off", "grid": ""}, RuntimeError),  # the others are still worth their time
        (1, {"ring": "off", "grid": "off"}, check.NoStart),
        (-11, {}, check.NoStart),
        (1, {"ring": ""}, check.NoStart),
    ],
)
def test_what_a_preflight_means(
    status: int,
    ways: dict[str, str],
    raised: type[Exception] | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    origin = {"device": {"name": "Made Up 200"}, "driver": "1", "versions": {"torch": "2"}, "kernels": "0"}
    results = Results(tmp_path / "gpu.json", origin)
    results.data["preflight"] = {"ways": {"of an earlier run": {"failure": ""}}}
    results.save()

    def ended(module: str, arguments: list[object], seconds: float) -> int:
        stored = results.renewed()
        assert "preflight" not in stored.data
        stored.data["preflight"] = {"ways": {name: {"failure": failure} for name, failure in ways.items()}}
        stored.save()
        return status

    monkeypatch.setattr(check, "ended", ended)
    if raised is None:
        check.preflight(results, 40, [])
    else:
        with pytest.raises(raised):
            check.preflight(results, 40, [])


def test_a_preflight_that_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(module: str, arguments: list[object], seconds: float) -> int:
        raise RuntimeError("it did not end in 40 s")

    monkeypatch.setattr(check, "ended", ended)
    with pytest.raises(check.NoStart, match=r"^preflight: it did not end in 40 s$"):
        check.preflight(Results(tmp_path / "gpu.json", {}), 40, [])


# the counters


def test_counters_are_read_from_what_ncu_prints() -> None:
    text = (
        "==PROF== Connected\n"
        '"ID","Process ID","Kernel Name","Metric Name","Metric Unit","Metric Value"\n'
        '"0","1","forward","dram__bytes_read.sum","byte","205,520,896"\n'
        '"0","1","forward","gpu__time_duration.sum","ns","95123.5"\n'
        '"1","1","apply","gpu__time_duration.sum","ns","1"\n'
        '"1","1","apply","something.else","ns","n/a"\n'
    )
    assert counters.read(text) == {
        "forward": {"bytes read": 205520896.0, "time": 95123.5},
        "apply": {"time": 1.0},
    }
    assert counters.read("==ERROR== ERR_NVGPUCTRPERM\n") == {}


def test_why_there_are_no_counters(tmp_path: Path) -> None:
    ncu = tmp_path / "ncu"
    ncu.write_text("#!/bin/sh\necho '==ERROR== ERR_NVGPUCTRPERM - no permission'\nexit 1\n")
    ncu.chmod(0o755)
    assert counters.profiled(str(ncu)) == {"missing": "==ERROR== ERR_NVGPUCTRPERM - no permission"}


# what is carried to a machine without a network


def test_the_wheels_are_the_pinned_ones() -> None:
    found = {Requirement(line).name: line for line in wheels.pinned()}
    assert list(found) == list(wheels.PACKAGES)
    command = wheels.command(Path("folder"))
    assert {*found.values()} < {*command}
    assert command[command.index("--python-version") + 1] == "3.12"


def test_a_prebuilt_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BNFOLD_PLUGIN_BUILT", raising=False)
    assert build.prebuilt() is None
    monkeypatch.setenv("BNFOLD_PLUGIN_BUILT", "/carried")
    assert build.prebuilt() == (Path("/carried/harness.so"), Path("/carried/libbnfold_plugin.so"))
