"""Damaged models: one clear error or a fold, never another exception."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from onnx import helper

from bnfold.api.convert import convert
from bnfold.api.fold_onnx import fold_loaded
from bnfold.errors import BnfoldError
from bnfold.onnx_graph.file.loaded import load
from bnfold.options import Check, Fold
from tests.onnx_graph.build import Build
from tests.onnx_graph.cases.random_graphs import random_model

BATCH = 150


@pytest.mark.parametrize("seed", range(4))
def test_damaged_models_end_in_one_clear_error_or_in_a_fold(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    path = tmp_path / "model.onnx"
    outcomes = {"folded": 0, "refused": 0}
    messages: list[str] = []
    for _ in range(BATCH):
        content = bytearray(random_model(int(rng.integers(1000)), 8).SerializeToString())
        for _ in range(int(rng.integers(1, 6))):
            at = int(rng.integers(len(content)))
            content[at] = (
                int(rng.integers(256)) if rng.random() < 0.6 else content[at] ^ 1 << int(rng.integers(8))
            )
        if rng.random() < 0.15:
            del content[int(rng.integers(len(content))) :]
        path.write_bytes(content)
        try:
            fold_loaded(load(path), check=Check(verify=False))
            outcomes["folded"] += 1
        except BnfoldError as error:
            outcomes["refused"] += 1
            messages.append(str(error))
        assert path.read_bytes() == content
    assert all(message and "\n" not in message for message in messages)
    assert min(outcomes.values()) > BATCH // 20, outcomes


@pytest.mark.parametrize("seed", range(2))
def test_damaged_models_end_in_one_clear_error_or_in_half_precision(seed: int) -> None:
    rng = np.random.default_rng(seed)
    outcomes = {"converted": 0, "refused": 0}
    messages: list[str] = []
    for at in range(BATCH):
        content = bytearray(random_model(int(rng.integers(1000)), 8).SerializeToString())
        for _ in range(int(rng.integers(1, 4))):
            content[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
        proto = onnx.ModelProto()
        try:
            proto.ParseFromString(bytes(content))
            convert(load(proto), ("fp16", "bf16")[at % 2])
            outcomes["converted"] += 1
        except DecodeError:
            continue
        except BnfoldError as error:
            messages.append(str(error))
            outcomes["refused"] += 1
    assert all(message and "\n" not in message for message in messages)
    assert min(outcomes.values()) > BATCH // 20, outcomes


def test_a_window_larger_than_its_input_is_one_clear_error() -> None:
    """onnx's shape inference ends the process on a Slice of the negative size that follows."""
    g = Build()
    y = g.conv(g.input("x", (2, 6, 9, 11)), 8, k=3, name="conv")
    numbers = [g.const(np.array(v, np.int64)) for v in ([1], [-1], [3])]
    g.output(g.bn(g.op("Slice", y, *numbers)))
    model = g.model()
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_value = 1
    with pytest.raises(BnfoldError, match=r"conv.*window is larger than its input"):
        fold_loaded(load(model), check=Check(verify=False))


@pytest.mark.parametrize("fold", [Fold(), Fold(target="tensorrt"), Fold(precision="fp16")])
def test_functions_that_call_each_other_twice_are_read_once_each(fold: Fold) -> None:
    """Inlined they are 2**60 nodes, which neither shape inference nor any runtime may be asked to walk."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("test", 1)]
    pair = (("x", "t"), ("t", "y"))
    bodies = [[helper.make_node("Relu", ["x"], ["y"])]]
    bodies += [[helper.make_node(f"F{i}", [x], [y], domain="test") for x, y in pair] for i in range(60)]
    g = Build(17, ir=8)
    y = g.bn(g.conv(g.input("x", (1, 4, 8, 8)), 4, name="conv"), name="bn")
    g.output(y)
    model = g.model()
    functions = [helper.make_function("test", f"F{i}", ["x"], ["y"], b, opsets) for i, b in enumerate(bodies)]
    model.functions.extend(functions)
    model.opset_import.append(opsets[1])
    model.graph.node.append(helper.make_node("F60", [y], ["z"], domain="test"))
    model.graph.output[0].name = "z"
    folded, report = fold_loaded(load(model), fold)
    assert [node.op_type for node in folded.proto.graph.node if node.op_type != "Cast"] == ["Conv", "F60"]
    assert report.verification.status == "not run"
    assert "too often" in report.verification.reason
