"""`bnfold equalize` and `bnfold.equalize_onnx`: what is computed, what is told, what is refused."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnfold
from bnfold.cli.app import main
from bnfold.cli.equalize import EPILOG as EQUALIZE_EPILOG
from bnfold.onnx_graph.file.loaded import load
from bnfold.onnx_graph.run.evaluators import evaluate
from bnfold.report.guard import Trial
from tests.onnx_graph.cases.random_graphs import random_model
from tests.passes.half.test_random import disturbed, folded

pytestmark = pytest.mark.xdist_group("random graphs, equalized")
GRAPHS = int(os.environ.get("BNFOLD_GRAPHS", "320"))
BATCH = 40
NEAR = 2e-6  # of the largest: float32 rounding, where an epsilon is rescaled
FAR = np.array([1, 2.0**-8, 2.0**-6, 2.0**-8] * 2)
MAKES_UP = np.array([2.0**-8, 1, 2.0**-2, 1] * 2)


def model(between: str = "Relu", norm: bool = True, shared: bool = False, opset: int = 17) -> onnx.ModelProto:
    """Conv -> [batch norm ->] `between` -> conv, whose ranges make up for each other; x is (1, 3, 8, 8)."""
    rng = np.random.default_rng(0)
    values: dict[str, Any] = {
        "w1": rng.uniform(0.5, 1, (8, 3, 3, 3))
        * rng.choice([-1, 1], (8, 3, 3, 3))
        * FAR[:, None, None, None],
        "b1": rng.normal(size=8) * FAR,
        "w2": rng.uniform(0.5, 1, (4, 8, 1, 1)) * MAKES_UP[:, None, None],
        "gamma": rng.uniform(0.8, 1.2, 8),
        "beta": rng.normal(size=8) * FAR,
        "mean": rng.normal(size=8) * FAR,
        "var": rng.uniform(0.8, 1.2, 8),
        "low": np.zeros(()),
        "high": np.full((), 6.0),
    }
    nodes = [helper.make_node("Conv", ["x", "w1", "b1"], ["c"], "one", pads=[1] * 4)]
    names, last = ["w1", "b1", "w2"], "c"
    if norm:
        nodes.append(
            helper.make_node("BatchNormalization", [last, "gamma", "beta", "mean", "var"], ["n"], "bn")
        )
        names, last = [*names, "gamma", "beta", "mean", "var"], "n"
    bounds = ["low", "high"] if between == "Clip" else []
    nodes.append(helper.make_node(between, [last, *bounds], ["r"], "between"))
    nodes.append(helper.make_node("Conv", ["r", "w2"], ["y"], "two"))
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 8, 8])]
    if shared:  # another reader of the second weight, whose input is a graph input
        nodes.append(helper.make_node("Conv", ["z", "w2"], ["other"], "three"))
        outputs.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, [1, 4, 8, 8]))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])]
    if shared:
        inputs.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 8, 8, 8]))
    stored = [numpy_helper.from_array(values[n].astype(np.float32), n) for n in [*names, *bounds]]
    graph = helper.make_graph(nodes, "g", inputs, outputs, stored)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(made, full_check=True)
    return made


def feed(proto: onnx.ModelProto, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    shapes = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in proto.graph.input}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def run(proto: onnx.ModelProto, seed: int = 0) -> dict[str, Any]:
    return evaluate(load(proto), feed(proto, seed))[0]


def stored(proto: onnx.ModelProto) -> dict[str, Any]:
    return {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}


def uneven(seed: int) -> onnx.ModelProto:
    """Convs, some depthwise, some in residual blocks, of wild ranges, with clips and maps between them."""
    rng = np.random.default_rng(seed)
    nodes, tensors, last = [], [], "x"

    def const(value: Any) -> str:
        tensors.append(numpy_helper.from_array(np.asarray(value, np.float32), f"k{len(tensors)}"))
        return f"k{len(tensors) - 1}"

    def conv(x: str, inputs: int, depthwise: bool = False) -> str:
        groups = inputs if depthwise else 1
        rows, columns = (2.0 ** rng.integers(-9, 1, (6, 1, 1, 1)) for _ in range(2))
        weight = rng.normal(size=(6, inputs // groups, 3, 3)) * rows
        weight = weight if depthwise or inputs < 6 else weight * columns.reshape(1, 6, 1, 1)
        bias = const(rng.normal(size=6) * rows.reshape(-1))
        made = [x, const(weight / np.abs(weight).max()), bias]
        nodes.append(
            helper.make_node(
                "Conv", made, [f"c{len(nodes)}"], f"conv{len(nodes)}", pads=[1] * 4, group=groups
            )
        )
        return str(nodes[-1].output[0])

    def between(x: str) -> str:
        op = ("Clip", "Clip", "Relu", "LeakyRelu", "Identity")[rng.integers(5)]
        low, high = rng.choice([-0.5, 0, 0, 0.1]), rng.choice([0.2, 1, 6])
        bounds = [const(low), const(high)] if op == "Clip" else []
        nodes.append(helper.make_node(op, [x, *bounds], [f"m{len(nodes)}"], f"map{len(nodes)}"))
        return str(nodes[-1].output[0])

    last = between(conv(last, 3))
    for _ in range(rng.integers(2, 6)):
        inner = between(conv(last, 6, depthwise=bool(rng.integers(2))))
        if rng.random() < 0.4:
            nodes.append(
                helper.make_node("Add", [last, conv(inner, 6)], [f"a{len(nodes)}"], f"add{len(nodes)}")
            )
            last = str(nodes[-1].output[0])
        else:
            last = inner
    nodes.append(helper.make_node("Identity", [conv(last, 6)], ["y"], "last"))
    ends = (
        helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, c, 5, 5]) for n, c in (("x", 3), ("y", 6))
    )
    graph = helper.make_graph(nodes, "g", [next(ends)], [next(ends)], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


# random graphs


class Seen:
    counts: ClassVar[Counter[str]] = Counter()


def balanced(loaded: Any, seed: int, split: bool) -> None:
    """Equalize, compare, count."""
    before = loaded.to_proto()
    kept = before.SerializeToString()
    result, report = bnfold.equalize_onnx(before, fold=False, split_relu6=split, verify=False)
    assert before.SerializeToString() == kept
    assert report.bits_after <= report.bits_before, seed
    if not report.regions:
        assert result.SerializeToString() == kept, seed
        return
    assert report.bits_after < report.bits_before, seed
    onnx.checker.check_model(result, full_check=True)
    exact, found = run(before, seed), run(result, seed)
    for name, value in exact.items():
        size = max(float(np.abs(value).max()), 1e-3)
        np.testing.assert_allclose(found[name], value, 0, NEAR * size, err_msg=f"seed {seed}: {name}")
    for region in report.regions:
        assert all(np.exp2(np.round(np.log2(f))) == f != 1 for f in region.factors), seed
    Seen.counts["graphs"] += 1
    Seen.counts["exact"] += all(np.array_equal(exact[name], found[name]) for name in exact)
    Seen.counts["split"] += bool(report.split)
    extra = len(result.graph.node) - len(before.graph.node)
    assert extra <= 2 * len(report.split), seed


@pytest.mark.parametrize("split", [False, True], ids=["whole", "split"])
@pytest.mark.parametrize("first", range(0, GRAPHS, BATCH))
def test_random_graphs_compute_the_same(first: int, split: bool) -> None:
    for seed in range(first, min(first + BATCH, GRAPHS)):
        plain = folded(seed)
        balanced(plain, seed, split)
        balanced(disturbed(plain, seed)[0], seed, split)  # of which there is more to balance


def test_the_random_graphs_reach_enough() -> None:
    """The batches above may have run in another process."""
    if Seen.counts["graphs"] < GRAPHS / 8:
        Seen.counts.clear()
        for first in range(0, GRAPHS, BATCH):
            for split in (False, True):
                test_random_graphs_compute_the_same(first, split)
    assert Seen.counts["graphs"] > GRAPHS / 8
    assert Seen.counts["exact"] > 0.9 * Seen.counts["graphs"]


def test_networks_of_uneven_ranges_compute_the_same() -> None:
    Seen.counts.clear()
    ops: Counter[str] = Counter()
    for seed in range(GRAPHS // 4):
        for split in (False, True):
            balanced(load(uneven(seed)), seed, split)
        result, report = bnfold.equalize_onnx(uneven(seed), split_relu6=True, verify=False)
        ops.update(node.op_type for node in result.graph.node)
        again, second = bnfold.equalize_onnx(result, fold=False, verify=False)  # and then it is balanced
        assert second.bits_before - second.bits_after <= report.bits_before - report.bits_after + 1e-9
        assert [i.name for i in again.graph.input] == ["x"]
    assert Seen.counts["exact"] == Seen.counts["graphs"] > GRAPHS / 4  # a power of two rounds nothing
    assert Seen.counts["split"] > GRAPHS / 16
    assert ops["Min"] > 0
    assert ops["Max"] > 0


def test_folding_first_computes_the_same_as_well() -> None:
    for seed in range(0, GRAPHS, 4):
        proto = random_model(seed)
        _, report = bnfold.equalize_onnx(proto, split_relu6=True)
        assert report.verification is None or report.verification.ok
        assert report.fold is not None


# the function


def test_ranges_are_balanced_and_no_bit_changes() -> None:
    proto = bnfold.fold_onnx(model())[0]
    result, report = bnfold.equalize_onnx(proto)
    for name, value in run(proto).items():
        np.testing.assert_array_equal(run(result)[name], value)
    before, after = stored(proto), stored(result)
    assert len(result.graph.node) == len(proto.graph.node)
    (region,) = report.regions
    assert (region.made_by, region.read_by) == (["one"], ["two"])
    factors = np.ones(8)
    factors[region.channels] = region.factors
    w1, w2 = (
        next(k for k, v in before.items() if v.shape == shape) for shape in ((8, 3, 3, 3), (4, 8, 1, 1))
    )
    np.testing.assert_array_equal(after[w1], before[w1] * factors[:, None, None, None])
    np.testing.assert_array_equal(after[w2], before[w2] / factors[:, None, None])
    one, two = report.layers
    for layer, old, new in ((one, before[w1], after[w1]), (two, before[w2], after[w2])):
        for spans, axes in (("outputs", (1, 2, 3)), ("inputs", (0, 2, 3))):
            for when, weight in (("before", old), ("after", new)):
                sizes = np.abs(weight).max(axes)
                assert getattr(layer, f"{spans}_{when}") == (sizes.min(), sizes.max())
    assert (
        one.outputs_after.high / one.outputs_after.low < 8 < one.outputs_before.high / one.outputs_before.low
    )
    assert report.bits_after < report.bits_before
    assert report.verification.ok
    assert report.fold.folded == []


def test_the_fold_comes_first_unless_it_is_not_wanted() -> None:
    result, report = bnfold.equalize_onnx(model())
    assert [entry.name for entry in report.fold.folded] == ["bn"]
    assert report.regions
    assert "BatchNormalization" not in [node.op_type for node in result.graph.node]
    result, report = bnfold.equalize_onnx(model(), fold=False)
    assert report.fold is None
    assert "BatchNormalization" in [node.op_type for node in result.graph.node]
    exact = run(model())["y"]
    np.testing.assert_allclose(run(result)["y"], exact, atol=1e-5 * np.abs(exact).max())


def test_a_clip_gets_a_min_with_a_bound_for_each_channel() -> None:
    proto = model("Clip", norm=False)
    same, report = bnfold.equalize_onnx(proto)
    assert same.SerializeToString() == proto.SerializeToString()
    assert not report.regions
    (entry,) = [entry for entry in report.kept if entry.tensor == "c"]
    assert (entry.blocked_by, entry.cure[:13]) == ("between", "--split-relu6")
    result, report = bnfold.equalize_onnx(proto, split_relu6=True)
    assert report.split == ["between"]
    assert [node.op_type for node in result.graph.node] == ["Conv", "Clip", "Min", "Conv"]
    (region,) = report.regions
    factors = np.ones(8)
    factors[region.channels] = region.factors
    clip, least = result.graph.node[1:3]
    after = stored(result)
    assert (after[clip.input[1]], after[clip.input[2]]) == (0, 6 * factors.max())
    np.testing.assert_array_equal(after[least.input[1]].reshape(-1), 6 * factors)
    for seed in range(4):
        x = {"x": 40 * feed(proto, seed)["x"]}  # so that the bounds are reached
        exact, found = (evaluate(load(m), x)[0]["y"] for m in (proto, result))
        np.testing.assert_array_equal(found, exact)


@pytest.mark.parametrize(
    ("between", "opset", "reason"),
    [("Sigmoid", 17, "is not linear"), ("Tanh", 17, "is not linear"), ("Softmax", 17, "Softmax is closed")],
)
def test_what_does_not_carry_is_kept_with_the_reason(between: str, opset: int, reason: str) -> None:
    proto = model(between, norm=False, opset=opset)
    same, report = bnfold.equalize_onnx(proto, split_relu6=True)
    assert same.SerializeToString() == proto.SerializeToString()
    (entry,) = [entry for entry in report.kept if entry.tensor == "c"]
    assert entry.blocked_by == "between"
    assert reason in entry.reason
    assert "nothing is carried at another size" in report.notes[-1]


def test_shared_weights_are_copied_or_left_or_an_error() -> None:
    proto = model(norm=False, shared=True)
    result, report = bnfold.equalize_onnx(proto)
    assert report.regions
    assert len({node.input[1] for node in result.graph.node if node.op_type == "Conv"}) == 3
    for name, value in run(proto).items():
        np.testing.assert_array_equal(run(result)[name], value)
    same, report = bnfold.equalize_onnx(proto, shared="skip")
    assert not report.regions
    assert same.SerializeToString() == proto.SerializeToString()
    assert any("shared" in entry.reason or "several" in entry.reason for entry in report.kept), report.kept
    with pytest.raises(bnfold.UsageError, match="'w2' is shared by two, three"):
        bnfold.equalize_onnx(proto, shared="error")


def test_the_kind_that_was_given_comes_back(tmp_path: Path) -> None:
    ir = pytest.importorskip("onnx_ir", reason="onnx_ir is an extra")
    result, _ = bnfold.equalize_onnx(ir.from_proto(model()))
    assert isinstance(result, ir.Model)
    onnx.save(model(), tmp_path / "in.onnx")
    result, _ = bnfold.equalize_onnx(tmp_path / "in.onnx", verify=False)
    assert isinstance(result, onnx.ModelProto)
    with pytest.raises(bnfold.UsageError, match="no such batch norm"):
        bnfold.equalize_onnx(model(), skip=["norm"])
    with pytest.raises(bnfold.UsageError, match="without a fold it says nothing"):
        bnfold.equalize_onnx(model(), fold=False, skip=["bn"])
    with pytest.raises(bnfold.UsageError, match="Note: valid choices are duplicate, skip, error"):
        bnfold.equalize_onnx(model(), shared="both")


# the command


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    onnx.save(model(), "in.onnx")
    return tmp_path


def test_the_command_writes_and_tells(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["equalize", "in.onnx", "out.onnx", "--json", "r.json"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("opset 17\ninputs x:1,3,8,8:float32\n")
    assert "\n1 folded, 0 kept\nlayer  op    outputs" in said
    assert "1 region rescaled (" in said
    assert "verification with onnxruntime" in said
    assert re.search(r"wrote out\.onnx \(.* -> .*\)\n$", said)
    np.testing.assert_allclose(run(onnx.load("out.onnx"))["y"], run(model())["y"], rtol=1e-5, atol=1e-6)
    report = json.loads((folder / "r.json").read_text())
    assert report["bits_after"] < report["bits_before"]
    assert report["fold"]["folded"] == 1


def keys_of(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set(value).union(*map(keys_of, value.values())) if value else set()
    return set().union(*map(keys_of, value)) if isinstance(value, list) else set()


def test_the_help_names_the_keys_of_the_report() -> None:
    told = set(re.findall(r'"(\w+)":', EQUALIZE_EPILOG))
    _, report = bnfold.equalize_onnx(model("Clip"), split_relu6=True)
    data = report.to_dict()
    assert all(data[part] for part in ("layers", "regions", "kept"))
    top = set(data).union(Trial._fields)
    for part in ("layers", "regions", "kept"):
        top |= keys_of(data[part])
    assert told == top
    data["fold"] = None  # which has tuples
    assert json.loads(json.dumps(data)) == data


def test_without_an_output_it_explains(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["equalize", "in.onnx"]) == 0
    assert capsys.readouterr().out.endswith("nothing was written: name an output file\n")
    assert [path.name for path in folder.iterdir()] == ["in.onnx"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["none.onnx", "out.onnx"], "none.onnx"),
        (["in.onnx", "in.onnx"], "in.onnx is the input itself; add --force"),
        (["in.onnx", "old.onnx"], "old.onnx"),
        (["text.onnx", "out.onnx"], "text.onnx"),
        (["in.onnx", "--force"], "--force has nothing to do without an output file"),
        (["in.onnx", "--save-as-external-data"], "--save-as-external-data has nothing to do"),
        (["in.onnx", "out.onnx", "--no-fold", "--skip", "bn"], "--skip has nothing to do with --no-fold"),
        (["in.onnx", "out.onnx", "--skip", "bm"], "no such batch norm. Note: valid choices are bn"),
        (["in.onnx", "out.onnx", "--no-verify", "--seed", "1"], "--seed has nothing to do with --no-verify"),
        (["in.onnx", "out.onnx", "--shared", "both"], "invalid choice: 'both'"),
        (["in.onnx", "out.onnx", "--json", "out.onnx"], "out.onnx has two uses"),
    ],
)
def test_bad_input_writes_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    (folder / "old.onnx").write_text("old")
    (folder / "text.onnx").write_text("no model")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    try:
        status = main(["equalize", *arguments])
    except SystemExit as stop:
        status = int(str(stop.code))
    assert status == 2
    error = capsys.readouterr().err
    assert error.startswith("bnfold: ")
    assert told in error
    assert error.count("\n") == 1
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_force_writes_over_the_input(folder: Path) -> None:
    assert main(["equalize", "in.onnx", "in.onnx", "--force"]) == 0
    assert "BatchNormalization" not in [node.op_type for node in onnx.load("in.onnx").graph.node]


def test_beyond_the_tolerance_nothing_is_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bnfold.passes import equalize

    whole = equalize.apply

    def broken(loaded: Any, graph: Any, edits: Any) -> None:  # forgets one of the edits
        whole(loaded, graph, edits[:-1] if loaded.proto.graph.node[0].name == "one" else edits)

    onnx.save(bnfold.fold_onnx(model())[0], "folded.onnx")
    monkeypatch.setattr(equalize, "apply", broken)
    assert main(["equalize", "folded.onnx", "out.onnx"]) == 1
    assert not (folder / "out.onnx").exists()


def test_a_weight_that_would_leave_its_type_stays() -> None:
    """The reader's weights are as small as float32 has them: dividing them by two loses bits."""
    proto = model(norm=False)
    for tensor in proto.graph.initializer:
        if tensor.name == "w2":
            value = numpy_helper.to_array(tensor).astype(np.float64) * 1.3e-38
            tensor.CopyFrom(numpy_helper.from_array(value.astype(np.float32), "w2"))
    same, report = bnfold.equalize_onnx(proto)
    assert same.SerializeToString() == proto.SerializeToString()
    (reason,) = {entry.reason for entry in report.kept if entry.blocked_by == "two"}
    assert "channel" in reason
    assert "float32" in reason


def test_a_half_precision_model_stays_within_its_tolerance() -> None:
    for seed in range(12):
        half, _ = bnfold.fold_onnx(uneven(seed), precision="fp16", rtol=1)
        result, report = bnfold.equalize_onnx(half, split_relu6=True)
        assert report.verification is None or report.verification.ok
        kinds = [{t.data_type for t in m.graph.initializer} for m in (half, result)]
        assert kinds[1] <= kinds[0]
        for region in report.regions:
            assert 2.0**-6 <= min(region.factors) <= max(region.factors) <= 2.0**6
