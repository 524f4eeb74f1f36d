"""How TensorRT's parser takes a node of ours: as the plugin, as the function in the model, or not at all.

By TensorRT-RTX's parser, without a GPU. It cannot import a plugin, and ends the process where it tries: a
creator that notes what it is given, and makes nothing, shows that it would. Each case has its own process.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

import bnfold
from tests.onnx_graph.build import Build
from tests.plugins.build import has_nvcc, library, unavailable
from tests.plugins.harness import OPS
from tests.plugins.test_registry import asked, need

REASON = unavailable()
EPSILON = 0.25
NOT_FOUND = "Plugin not found, are the plugin name, version, and namespace correct?"

PROGRAM = """
import json, sys
import numpy as np
import tensorrt_rtx as trt

model, creators, library = sys.argv[1:]

class Silent(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
    def log(self, severity, text):
        pass

class Recorder(trt.IPluginCreatorV3One):
    noted = []
    def __init__(self, name):
        trt.IPluginCreatorV3One.__init__(self)
        self.name, self.plugin_namespace, self.plugin_version = name, "bnfold", "1"
        wanted = [trt.PluginField("epsilon", np.array([], np.float32), trt.PluginFieldType.FLOAT32)]
        self.field_names = trt.PluginFieldCollection(wanted if "Stat" in name else [])
    def create_plugin(self, name, fields, phase):
        given = {each.name: np.array(each.data).tolist() for each in fields}
        self.noted.append([self.name, name, given, phase.name])
        return None

log = Silent()
builder = trt.Builder(log)
registry = trt.get_plugin_registry()
kept = [Recorder(name) for name in creators.split()]
for each in kept:
    registry.register_creator(each, "bnfold")
if library:
    registry.load_library(library)
network = builder.create_network(0)
parser = trt.OnnxParser(network, log)
good = parser.parse_from_file(model)
layers = [network.get_layer(i).type.name for i in range(network.num_layers)]
errors = [parser.get_error(i).desc() for i in range(parser.num_errors)]
print(json.dumps({"good": good, "layers": layers, "errors": errors, "noted": Recorder.noted}))
"""


def model(path: Path, op: str, *, named: bool = True, function: bool = True) -> Path:
    """One node. named: with the plugin's attributes. function: with a body, if not the op's own."""
    inputs = ["x", "scale", "shift", *["residual"] * ("Add" in op)]
    attributes: dict[str, Any] = {"epsilon": EPSILON} if "Stat" in op else {}
    if named:
        attributes |= {"plugin_namespace": "bnfold", "plugin_version": "1"}
    node = helper.make_node(op, inputs, ["y"], name="bn1", domain="bnfold", **attributes)
    shapes = {"x": (2, 4, 8, 8), "residual": (2, 4, 8, 8), "y": (2, 4, 8, 8)}
    values = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()
    }
    stored = [
        helper.make_tensor(name, TensorProto.FLOAT, (1, 4, 1, 1), [1.0] * 4) for name in ("scale", "shift")
    ]
    body = [helper.make_node("Sub", ["x", "scale"], ["t"]), helper.make_node("Erf", ["t"], ["y"])]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("bnfold", 1)]
    made = helper.make_function("bnfold", op, inputs, ["y"], body, opsets[:1], [*attributes])
    graph = helper.make_graph(
        [node], "graph", [values[name] for name in inputs if name in values], [values["y"]], stored
    )
    whole = helper.make_model(graph, opset_imports=opsets, functions=[made] if function else [], ir_version=9)
    onnx.checker.check_model(whole)
    onnx.save(whole, path)
    return path


def parsed(path: Path, creators: str = "", library: Path | str = "") -> dict[str, Any]:
    need("tensorrt_rtx")
    done = asked(PROGRAM, path, creators, library)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return {**found, "stderr": done.stderr}


@pytest.mark.parametrize("op", OPS)
def test_with_a_creator_the_plugin(op: str, tmp_path: Path) -> None:
    found = parsed(model(tmp_path / "m.onnx", op), " ".join(OPS))
    fields = {"epsilon": [EPSILON]} if "Stat" in op else {}
    assert found["noted"] == [[op, "bn1", fields, "BUILD"]]
    assert not found["good"]
    assert "Could not create the plugin" in found["errors"][0]


@pytest.mark.parametrize("op", OPS)
def test_what_the_fold_writes_asks_for_the_plugin(op: str, tmp_path: Path) -> None:
    """And for its function, which computes the same, where there is none."""
    g = Build()
    x = g.input("x", (2, 4, 6, 6))
    y = g.op("Sigmoid", x)
    if "Stat" in op:
        how = {"training_mode": 1, "epsilon": EPSILON}
        y, *_ = g.ops("BatchNormalization", y, *g.norm_parameters(4), count=3, name="bn1", **how)
    else:  # known at run time, so that every variant is a node of ours
        gain, offset = g.input("gain", (2, 4, 1, 1)), g.input("offset", (2, 4, 1, 1))
        y = g.op("Add", g.op("Mul", y, gain, name="bn1"), offset)
    y = g.op("Add", y, x) if "Add" in op else y
    g.output(g.op("Relu" if "Relu" in op else "Exp", y))
    written, report = bnfold.fold_onnx(g.model(), target="tensorrt")
    assert [entry.op for entry in report.rewritten] == [f"bnfold.{op}"]
    onnx.save(written, tmp_path / "m.onnx")
    found = parsed(tmp_path / "m.onnx", " ".join(OPS))
    assert found["noted"] == [[op, "bn1", {"epsilon": [EPSILON]} if "Stat" in op else {}, "BUILD"]]
    assert parsed(tmp_path / "m.onnx")["good"]


def test_without_a_creator_the_function(tmp_path: Path) -> None:
    for creators in ("", "BnfoldBatchNorm"):  # none, or that of another op
        found = parsed(model(tmp_path / "m.onnx", "BnfoldBatchNormRelu"), creators)
        assert (found["good"], found["noted"]) == (True, [])
        assert found["layers"][-1] == "UNARY"


def test_without_the_attributes_the_function(tmp_path: Path) -> None:
    found = parsed(model(tmp_path / "m.onnx", "BnfoldBatchStatNorm", named=False), "BnfoldBatchStatNorm")
    assert (found["good"], found["noted"]) == (True, [])
    assert found["layers"][-1] == "UNARY"


def test_without_either_an_error(tmp_path: Path) -> None:
    path = model(tmp_path / "m.onnx", "BnfoldBatchStatNorm", function=False)
    found = parsed(path)
    assert not found["good"]
    assert NOT_FOUND in found["errors"][0]
    # Where there is no function, the domain alone leads to the plugin.
    path = model(tmp_path / "n.onnx", "BnfoldBatchStatNorm", function=False, named=False)
    found = parsed(path, "BnfoldBatchStatNorm")
    assert found["noted"] == [["BnfoldBatchStatNorm", "bn1", {"epsilon": [EPSILON]}, "BUILD"]]


@pytest.mark.skipif(REASON is not None, reason=REASON or "")
def test_a_library_without_kernels_is_told_by_the_parser(tmp_path: Path) -> None:
    found = parsed(model(tmp_path / "m.onnx", "BnfoldBatchNormAdd"), library=library(kernels=False))
    assert not found["good"]
    assert "Could not create the plugin" in found["errors"][0]
    assert "BnfoldBatchNormAdd 'bn1': this plugin library was built without kernels" in found["stderr"]


@pytest.mark.skipif(REASON is not None or not has_nvcc(), reason=REASON or "nvcc is not here")
def test_with_the_library_tensorrt_rtx_takes_the_plugin(tmp_path: Path) -> None:
    """Which it cannot import: it ends the process, as load_plugin warns."""
    need("tensorrt_rtx")
    path = model(tmp_path / "m.onnx", "BnfoldBatchStatNorm")
    done = asked(PROGRAM, path, "", library(kernels=True))
    assert (done.returncode < 0, done.stdout) == (True, "")
