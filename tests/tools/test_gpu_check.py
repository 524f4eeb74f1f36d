"""The tools for a GPU, without one: runs on the CPU, the file they write, the outcome of tests."""

from __future__ import annotations

import json
import math
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from bnfold.kernels.launch import Device, Launch
from bnfold.nn import kernel_calls
from tools._common import ROOT
from tools._gpu import compile as compiling
from tools._gpu import kernels, layers, modules, tests
from tools._gpu import results as stored

H100 = Device((9, 0), multiprocessors=132, shared_memory=227 * 1024, clusters=8, cooperative=True)
SMALL = layers.Layer(16, 7, 7, {"alone": 1, "relu": 1, "add_relu": 1})
ORIGIN = {"device": {"name": "Made Up 100"}, "driver": "1.2", "versions": {"torch": "2"}, "kernels": "0" * 16}


# runs, on the CPU


class Stopwatch:
    """Runs the work twice, and says that it took a microsecond."""

    def us(self, prepare: Any, expected: float) -> dict[str, float]:
        work = prepare()
        work()
        work()
        return {"median": 1.0, "quartile_1": 1.0, "quartile_3": 1.0}


class Machine:
    """Launches nothing."""

    limits = H100

    def __init__(self) -> None:
        self.launches: list[Launch] = []

    def launch(self, launch: Launch, *_: Any) -> None:
        self.launches.append(launch)


def bench(path: Path, **known: Any) -> Any:
    results = stored.Results(path, ORIGIN)
    results.data.update({"copy": {"gb_per_s": 100.0, "bytes": 1}, **known})
    console = Console(file=(path.parent / "out").open("w"), width=300)
    return kernels.Bench(results, console, "cpu", most=86400)  # however slow this machine is


def small(kind: str = "bfloat16", fusion: str = "add_relu", layout: str = "channels_last") -> Any:
    return layers.Case(SMALL, 2, kind, layout, fusion)


def test_a_run_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    path = tmp_path / "gpu.json"
    todo = [
        layers.Task(small(kind, fusion, layout), compiled)
        for kind in layers.TYPES
        for layout in layers.LAYOUTS
        for fusion in layers.FUSIONS
        for compiled in (False, True)
    ]
    here = bench(path)
    status = here.run(todo, Stopwatch(), math.inf)
    assert status == 1  # no kernel runs on the CPU
    data = json.loads(path.read_text())
    assert len(data["cases"]) == 18
    for key, record in data["cases"].items():
        assert set(record["us"]) == set(layers.PASSES)
        assert all(set(each) == {"bnfold", "native", "compile"} for each in record["us"].values())
        assert "forward ran on no kernel" in record["failure"]
        wanted = {"y", "dx", "dweight", "dbias", "running_mean", "running_var", "eval"}
        assert set(record["errors"]) == wanted | ({"dresidual"} if "add" in key else set())
        if "float32" in key:
            assert max(record["errors"].values()) < 1e-5
    here.console.file.flush()
    assert len((tmp_path / "out").read_text().splitlines()) == 2 + len(todo)


def test_what_is_known_is_not_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    done, failed, broken = (layers.Task(small(fusion=fusion)) for fusion in layers.FUSIONS)
    us = {which: {"bnfold": {}, "native": {}} for which in layers.PASSES}
    cases = {
        done.case.key: {"us": us, "failure": ""},
        failed.case.key: {"us": us, "failure": "y is off"},
        broken.case.key: {"us": {which: {} for which in layers.PASSES}, "failure": "x", "broke": ["native"]},
    }
    assert [kernels.known({"cases": cases}, task) for task in (done, failed, broken)] == [True, False, True]
    assert not kernels.known({"cases": cases}, layers.Task(done.case, compiled=True))
    assert not kernels.known({}, done)
    here = bench(path, cases=cases)
    here.run([done, broken], Stopwatch(), math.inf)
    assert here.results.data["cases"] == cases


def test_errors_and_time_end_a_part_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = bench(tmp_path / "gpu.json")

    def fail() -> dict[str, Any]:
        raise RuntimeError("no luck")

    here.part("memory", fail)
    here.part("overhead", lambda: {"a": 1})
    assert here.results.data["errors"] == {"memory": "RuntimeError: no luck"}
    here.part("memory", lambda: {"b": 2})
    data = json.loads((tmp_path / "gpu.json").read_text())
    assert (data["memory"], data["overhead"], data["errors"]) == ({"b": 2}, {"a": 1}, {})
    here.run([layers.Task(small())], Stopwatch(), -math.inf)
    assert "cases" not in here.results.data
    monkeypatch.setattr(here, "measure", lambda *_: fail())
    monkeypatch.setattr(here, "usable", lambda: False)
    assert here.run([layers.Task(small())], Stopwatch(), math.inf) == kernels.BROKEN
    record = here.results.data["cases"][small().key]
    assert (record["failure"], record["broke"]) == ("RuntimeError: no luck", ["native"])


def test_launches_are_seen_and_wrong_results_told(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine()
    monkeypatch.setattr(kernel_calls, "machine_of", lambda x: machine)
    monkeypatch.setattr("bnfold.nn.functional._device_usable", lambda device: True)
    case = small("float32")
    found = modules.checked(case, modules.Tensors.drawn(case, "cpu"))
    assert [found["rows"][which]["row"] for which in layers.PASSES] == ["one block", "one block", "stream"]
    assert found["rows"]["forward"]["kernel"].startswith("bnfold::forward<float, float, 4")
    assert "y is off by" in found["failure"]  # nothing was written
    assert "dx is off by" in found["failure"]


def test_memory_counts_what_autograd_keeps() -> None:
    case = small("float32", "relu")
    tensors = modules.Tensors.drawn(case, "cpu")
    found = modules.memory(case, tensors, "cudnn")
    vectors = 2 * 4 * case.layer.channels  # mean and invstd
    assert 2 * case.tensor <= found["saved"] <= 2 * case.tensor + vectors


def test_torchs_modules_are_those_of_its_resnet() -> None:
    chain = modules.Chain(4, "add_relu")
    norm = nn.BatchNorm2d(4)
    x, residual = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    wanted: Tensor = torch.relu(norm(x) + residual)
    assert torch.equal(chain(x, residual), wanted)
    assert modules.names(modules.Tensors.drawn(small(), "cpu")) == ["bnfold", "native"]


# the file


def test_a_result_is_kept_only_for_the_same_origin(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "gpu.json"
    first = stored.Results(path, ORIGIN)
    first.part("cases")["a"] = 1
    first.failed("tests", ValueError("x"))
    first.worked("tests")
    assert stored.Results(path, ORIGIN).data["cases"] == {"a": 1}
    assert len(path.read_text().splitlines()) == 9 + 2
    assert "cases" not in stored.Results(path, ORIGIN, again=True).data
    assert "cases" not in stored.Results(path, {**ORIGIN, "driver": "1.3"}).data
    assert [each.name for each in path.parent.iterdir()] == ["gpu.json"]
    assert stored.default_path("NVIDIA H100 80GB HBM3").name == "gpu_NVIDIA_H100_80GB_HBM3.json"
    assert len(stored.sources()) == 16


# the tests' outcome, and the kernels to compile


def test_the_outcome_of_tests_is_read_from_what_pytest_prints() -> None:
    alone = (
        "tests/gpu/test_gpu.py::test_values[one plane-torch.float32-as it is] PASSED   [  1%]\n"
        "tests/gpu/test_gpu.py::test_b FAILED [  2%]\n"
        "tests/gpu/test_gpu.py::test_c SKIPPED (no memory)  [  3%]\n"
        "FAILED tests/gpu/test_gpu.py::test_b - AssertionError: y: 3.00 times the room\n"
    )
    found = tests.ends(alone, 1)
    assert found["outcome"] == "failed"
    assert (found["passed"], found["failed"], found["skipped"]) == (1, 1, 1)
    assert found["failures"] == {"tests/gpu/test_gpu.py::test_b": "AssertionError: y: 3.00 times the room"}
    spread = (
        "[gw1] [  1%] PASSED tests/gpu/test_gpu.py::test_a[x y] \n"
        "[gw0] [ 50%] FAILED tests/gpu/test_gpu.py::test_b \n"
    )
    found = tests.ends(spread, None)
    assert found["outcome"] == "out of time"
    assert (found["passed"], found["failed"]) == (1, 1)
    assert list(found["failures"]) == ["tests/gpu/test_gpu.py::test_b"]
    assert tests.ends("", 5)["outcome"] == "no tests"
    assert tests.ends("tests/gpu/test_gpu.py::test_c SKIPPED (x)  [  3%]\n", 0)["outcome"] == "all skipped"


def test_the_outcome_of_real_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of them never ends: the time is over once the four others have ended, however long that takes."""
    log = tmp_path / "log"

    class Process(subprocess.Popen[bytes]):
        def wait(self, timeout: float | None = None) -> int:
            if timeout is None:
                return super().wait()
            while sum(tests.ends(log.read_text(), None)[end] for end in ("passed", "failed", "skipped")) < 4:
                assert self.poll() is None, log.read_text()
                time.sleep(0.1)
            raise subprocess.TimeoutExpired(self.args, timeout)

    folder = tmp_path / "tests" / "gpu"
    folder.mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\nmarkers = ['gpu: x']\n")
    (folder / "test_it.py").write_text(
        "import pytest, time\npytestmark = pytest.mark.gpu\n"
        "@pytest.mark.parametrize('x', ['a b', 'c'])\ndef test_good(x): pass\n"
        "def test_bad(): assert 1 == 2\n"
        "@pytest.mark.skip(reason='why')\ndef test_none(): pass\n"
        "def test_never(): time.sleep(86400)\n"
    )
    monkeypatch.setattr(tests, "ROOT", tmp_path)
    monkeypatch.setattr(subprocess, "Popen", Process)
    found = tests.run(log, 540)
    assert (found["outcome"], found["passed"], found["failed"], found["skipped"]) == ("out of time", 2, 1, 1)
    assert list(found["failures"]) == ["tests/gpu/test_it.py::test_bad"]


def test_every_test_for_a_gpu_is_where_the_tool_looks() -> None:
    marked = [path for path in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in path.read_text()]
    assert marked == [Path(__file__)]
    for path in (ROOT / "tests" / "gpu").glob("test_*.py"):
        assert "\npytestmark = MARKS\n" in path.read_text()
    assert tests.FOLDER == "tests/gpu"


def test_all_kernels_are_compiled_ahead() -> None:
    wanted = compiling.instances(H100)
    assert len(set(wanted)) == len(wanted)
    assert {source for source, _ in wanted} == {"forward.cuh", "backward.cuh", "apply.cuh"}
    for kind, layout in (("bfloat16", "channels_last"), ("float32", "NCHW")):
        case = layers.Case(layers.LAYERS[-1], 128, kind, layout, "alone")
        x = modules.Tensors.drawn(case, "meta").x
        array, problem = kernel_calls.array_of(x), compiling.problem(case, "apply")
        assert (array.outer, array.channels, array.inner) == (problem.outer, problem.channels, problem.inner)
        assert problem.types == (kernel_calls.NAMES[x.dtype], "float", "float")
