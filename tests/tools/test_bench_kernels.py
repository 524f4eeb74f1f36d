"""What tools/bench_kernels measures and what it says of it: layers, bytes, order, goals, the page."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from docs import tables as page
from tools._common import ROOT, command
from tools._gpu import check, goals, kernels, layers

ORIGIN = {
    "device": {"name": "Made Up 100", "capability": [9, 0], "multiprocessors": 132, "memory": 8, "l2": 5},
    "driver": "1.2",
    "versions": {"torch": "2", "cuda": "13"},
    "kernels": "0" * 16,
}


def test_the_layers_are_resnet_50s() -> None:
    """Built from the network's description."""
    wanted: Counter[tuple[str, str]] = Counter({("64x112x112", "relu"): 1})
    for stage, (blocks, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512))):
        size = 56 >> stage
        for block in range(blocks):
            # The stride is in the 3x3 convolution: the 1x1 before it has the size of the stage before.
            first = size * 2 if stage and not block else size
            wanted[f"{width}x{first}x{first}", "relu"] += 1
            wanted[f"{width}x{size}x{size}", "relu"] += 1
            wanted[f"{4 * width}x{size}x{size}", "add_relu"] += 1
        wanted[f"{4 * width}x{size}x{size}", "alone"] += 1  # of the shortcut
    found = {(each.name, fusion): count for each in layers.LAYERS for fusion, count in each.counts.items()}
    assert found == dict(wanted)
    assert sum(each.count for each in layers.LAYERS) == 53
    assert len({each.name for each in layers.LAYERS}) == len(layers.LAYERS) == 12


def test_bytes() -> None:
    def case(fusion: str, kind: str = "float16") -> Any:
        return layers.Case(layers.LAYERS[0], 128, kind, "NCHW", fusion)

    values = 128 * 64 * 112 * 112
    assert case("alone").tensor == 2 * values
    assert case("alone", "float32").tensor == 4 * values
    for fusion in ("alone", "relu"):
        assert [case(fusion).floor(which) for which in layers.PASSES] == [4 * values, 6 * values, 4 * values]
    bits = values // 8
    wanted = [6 * values + bits, 8 * values + bits, 6 * values]
    assert [case("add_relu").floor(which) for which in layers.PASSES] == wanted
    both = [
        sum(c.floor(w) * n for c, n in goals.alone(128, "float16", "NCHW")) for w in ("forward", "backward")
    ]
    assert [round(each / 1e9, 2) for each in both] == [5.69, 8.54]


def test_all_is_measured_and_the_goals_come_first() -> None:
    everything = layers.cases()
    assert len({case.key for case in everything}) == len(everything) == 3 * 3 * 2 * 3 * 12
    first = everything[:12]
    assert {(case.batch, case.type, case.layout, case.fusion) for case in first} == {
        (128, "bfloat16", "channels_last", "alone")
    }
    todo = layers.tasks(everything, True)
    compiled = [task for task in todo if task.compiled]
    assert {task.case.key for task in compiled} == {case.key for case in everything[:36] if case.in_network}
    assert len(todo) - len(compiled) == len(everything)
    assert todo.index(compiled[0]) == 216


def test_arguments() -> None:
    few = kernels.parsed(["--only", "512x7x7", "64x112x112", "--batch", "64", "--type", "float32"])
    keys = [task.case.key for task in kernels.chosen(few)]
    assert keys[0] == "64 float32 channels_last 64x112x112 alone"
    assert len(keys) == 2 * 2 * 3
    quick = kernels.chosen(kernels.parsed(["--quick"]))
    assert {task.case.batch for task in quick} == {128}
    assert not any(task.compiled for task in quick)
    with pytest.raises(SystemExit):
        kernels.parsed(["--only", "7x7"])
    ours, others = check.parsed(["--seconds", "100", "--quick", "--batch", "64", "--parts", "bench"])
    assert (ours.seconds, ours.parts) == (100, ["bench"])
    assert kernels.parsed(others).batch == [64]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(("tool", "module"), [("gpu_check", "check"), ("bench_kernels", "kernels")])
@pytest.mark.parametrize("here", [True, False])
def test_without_a_gpu(tool: str, module: str, here: bool, tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    python = command(f"tools._gpu.{module}", "--output", output)
    shell = [f"tools/{tool}"]
    if not here and shutil.which("bash") is None:
        pytest.skip("the tool is written for bash")
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        python if here else shell, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(f"{tool} needs an NVIDIA GPU: .*\\. Nothing was written\\.\n", done.stderr)
    assert not output.exists()


# goals, on made-up numbers


def made_up(ours: float = 1.0, torch_: float = 3.0, failure: str = "", batch: int = 128) -> dict[str, Any]:
    """A result where each pass takes so many times the floor at 3000 GB/s."""
    found: dict[str, Any] = {**json.loads(json.dumps(ORIGIN)), "date": "2026-01-01", "errors": {}}
    found["copy"] = {"bytes": 2**30, "gb_per_s": 3000.0}
    found["cases"] = {}
    for case in layers.cases([batch]):
        us: dict[str, dict[str, Any]] = {}
        for which in layers.PASSES:
            floor = case.floor(which) / 3000e3
            times = {"bnfold": ours * floor, "native": torch_ * floor}
            if case.type != "bfloat16":
                times["cudnn"] = torch_ / 2 * floor
            us[which] = {
                name: {"median": value, "quartile_1": value, "quartile_3": value}
                for name, value in times.items()
            }
        rows = {which: {"row": "cluster"} for which in layers.PASSES}
        errors = {"y": 1e-3, "dx": 1e-3}
        found["cases"][case.key] = {"rows": rows, "errors": errors, "failure": failure, "us": us}
    found["memory"] = {
        fusion: {
            who: {"saved": saved, "grown": 1, "peak": 2} for who, saved in (("bnfold", 10), ("torch", 20))
        }
        for fusion in ("add_relu", "relu")
    }
    found["tests"] = {
        "outcome": "passed",
        "passed": 9,
        "failed": 0,
        "skipped": 1,
        "failures": {},
        "seconds": 1.0,
    }
    return found


def verdicts(result: dict[str, Any]) -> list[bool | None]:
    return [goal.holds for goal in goals.goals(result)]


def test_goals() -> None:
    assert verdicts({}) == [None] * 5
    assert verdicts(made_up()) == [True] * 5
    assert verdicts(made_up(ours=1 / 0.84)) == [False, True, True, True, True]
    assert verdicts(made_up(torch_=1.9)) == [True, False, False, False, True]
    assert verdicts(made_up(torch_=2.1)) == [True] * 5
    assert verdicts(made_up(failure="y is off")) == [None] * 4 + [True]
    assert verdicts(made_up(batch=64))[:4] == [None] * 4
    one = made_up()
    slow = layers.Case(layers.LAYERS[7], 128, "float32", "NCHW", "alone")
    one["cases"][slow.key]["us"]["backward"]["bnfold"]["median"] *= 2
    assert verdicts(one) == [False, True, True, True, True]
    assert "the least is 50%, 128x28x28 float32 NCHW backward" in goals.goals(one)[0].detail
    small = layers.Case(layers.LAYERS[-1], 128, "float16", "channels_last", "alone")  # 6 MB
    one["cases"][small.key]["us"]["forward"]["cudnn"]["median"] /= 10
    assert verdicts(one)[2] is True


def test_a_missing_layer_leaves_the_sum_open() -> None:
    result = made_up()
    totals = {(each.title, each.which): each for each in goals.sums(result)}
    assert len(totals) == 6 * 2 * 3
    whole = totals["batch 128, bfloat16, channels_last, alone", "forward"]
    assert whole.ours == pytest.approx(5.69 / 3, rel=1e-2)
    assert whole.torch == pytest.approx(3 * whole.ours)
    del result["cases"]["128 bfloat16 channels_last 512x7x7 alone"]
    left = {(each.title, each.which) for each in goals.sums(result)}
    assert ("batch 128, bfloat16, channels_last, alone", "forward") not in left
    assert verdicts(result)[1] is None


# the file


def check_result(result: dict[str, Any]) -> None:
    """What every file of bench/results/gpu_*.json must have."""
    assert set(result) >= {*ORIGIN, "date", "errors"}
    assert set(result["device"]) == set(ORIGIN["device"])
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", result["date"])
    assert re.fullmatch(r"[0-9a-f]{16}", result["kernels"])
    assert result["versions"]["torch"]
    if "copy" in result:
        assert result["copy"]["gb_per_s"] > 0
    keys = {case.key for case in layers.cases()}
    for key, record in result.get("cases", {}).items():
        assert key in keys
        assert set(record) >= {"rows", "errors", "failure", "us"}
        for times in record["us"].values():
            assert set(times) <= {"bnfold", "native", "cudnn", "compile"}
            assert all(each["quartile_1"] <= each["median"] <= each["quartile_3"] for each in times.values())
            # a difference of two times, which noise could make negative
            assert record["failure"] or all(each["median"] > 0 for each in times.values())
    if "tests" in result:
        counts = [result["tests"][end] for end in ("passed", "failed", "skipped")]
        assert min(counts) >= 0
        assert len(result["tests"]["failures"]) >= counts[1]


def test_results_are_complete() -> None:
    check_result(made_up())
    for path in (ROOT / "bench" / "results").glob("gpu_*.json"):
        check_result(json.loads(path.read_text()))


# the page


def test_the_page_without_and_with_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    assert page.gpu_goals().count("| not measured yet |") == 5
    assert page.gpu_layers() == "Not measured yet."
    result = made_up()
    del result["cases"]["128 bfloat16 channels_last 512x7x7 relu"]
    (tmp_path / "gpu_made_up.json").write_text(json.dumps(result))
    (tmp_path / "gpu_slow.json").write_text(json.dumps(made_up(torch_=1.5)))
    text = page.gpu_goals()
    assert text.startswith("| goal | Made Up 100 | Made Up 100 |\n|---|---|---|\n")
    assert "| holds: 3.00 times: " in text
    assert "| **does not hold**: 1.50 times: " in text
    text = page.gpu_layers()
    assert "Tests on the device: 9 passed, 0 failed, 1 skipped (passed)." in " ".join(text.split())
    assert "| 64x112x112 | 1 | relu | 137.0 us, 100%, 3.00 times | 205.5 us, 100%, 3.00 times |" in text
    assert "| 512x7x7 | 5 | relu | not measured yet | not measured yet | not measured yet |" in text
    assert (
        "| all 53 layers, batch 128, bfloat16, channels_last, alone, forward | 1.90 | 5.69 | 3.00 |" in text
    )
