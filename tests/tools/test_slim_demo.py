"""The demonstration of slimming: what it prints and stores is what it measured, and is the same each time."""

from __future__ import annotations

import json
import re
from pathlib import Path

import onnx
import pytest

from tests.tools.conftest import Ran

pytest.importorskip("sklearn", reason="the digits lie in scikit-learn, of the extra train-demo")
pytest.importorskip("torch_pruning", reason="slimming needs the extra compress")

STEPS = ["trained", "pruned", "recalibrated", "fine-tuned", "recalibrated again", "folded"]


def test_half_of_the_channels_and_all_batch_norms_leave(ran_here: Ran, tmp_path: Path) -> None:
    target, results = tmp_path / "net.onnx", tmp_path / "slim.json"
    done = ran_here("_demos.slim_demo", "--quick", "--out", target, "--json", results)
    assert (done.returncode, done.stderr) == (0, "")
    [run] = json.loads(results.read_text())["runs"]

    rows = re.findall(r"^(\w.*?)  +(\d+\.\d\d) % +(\d+) +(\d+)$", done.stdout, re.MULTILINE)
    assert [name for name, *_ in rows] == [*STEPS, "exported, in onnxruntime"]
    assert [(float(share), int(count)) for _, share, count, _ in rows] == [
        (round(100 * step["value"], 2), step["parameters"]) for step in run["steps"]
    ]
    assert [int(norms) for *_, norms in rows] == [11] * 5 + [0, 0]
    assert rows[-3][1] == rows[-2][1] == rows[-1][1]  # folding and exporting change no answer
    assert run["steps"][-1]["other_answers"] == 0
    before, after = run["totals"]["channels"]
    assert abs(after / before - 0.5) < 0.02
    assert run["verification"] == "passed"

    # the file holds the weights that are told of, in as many layers as the network had
    graph = onnx.load(target).graph
    assert sum(node.op_type == "Conv" for node in graph.node) == 11
    stored = [
        tensor for tensor in graph.initializer if len(tensor.dims) in (1, 2, 4) and tensor.data_type == 1
    ]
    assert (
        sum(int(onnx.numpy_helper.to_array(tensor).size) for tensor in stored)
        == run["steps"][-1]["parameters"]
    )

    ways = run["ways"]
    assert set(ways) > {"mean", "by chance", "mean, without the penalty"}
    assert ways["by chance"]["removed"] == ways["mean"]["removed"]  # as many from each group
    assert ways["by chance"]["totals"] == ways["mean"]["totals"]
    mean = ways["mean"]["steps"]
    assert [mean[name] for name in STEPS[:3]] == [step["value"] for step in run["steps"][:3]]
    assert mean["tuned, 0.005"] == run["steps"][4]["value"]  # trained again, by the same seed


def test_what_cannot_be_written_ends_the_tool_with_status_2(ran_here: Ran, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = ran_here("_demos.slim_demo", "--out", tmp_path / "file" / "net.onnx")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"slim_demo: .*'\S+file'\n", done.stderr)


def test_seeds_are_counted_from_one(ran_here: Ran) -> None:
    done = ran_here("_demos.slim_demo", "--seeds", 0)
    assert done.returncode == 2
    assert done.stderr.endswith("slim_demo: error: --seeds: at least 1\n")
