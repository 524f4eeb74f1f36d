"""Drop the dead channels of a small model, with all that must hold whatever it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from bnfold.onnx_graph.file.loaded import load
from bnfold.passes.channels.drop import drop_dead_channels
from bnfold.report.channels import Dropped
from tests.onnx_graph.build import Array, Build
from tests.onnx_graph.look import difference, feeds, run

__all__ = ["Lost", "Net", "counted", "drop", "lost", "stated_sizes_hold"]

Lost = dict[str, tuple[int, int]]  # layer: output and input channels that it lost

NEAR = {"float16": 2e-2, "bfloat16": 1e-1, "float32": 2e-6, "float64": 1e-13}


class Net(Build):
    """A builder whose layers have the dead channels that a test asks for."""

    def image(self, channels: int = 3, size: int = 6) -> str:
        return self.input("x", (2, channels, size, size))

    def layer(
        self,
        x: str,
        outputs: int = 4,
        k: int = 1,
        *,
        dead: dict[int, float] | None = None,
        unread: tuple[int, ...] = (),
        group: int = 1,
        name: str | None = None,
        **how: Any,
    ) -> str:
        """A conv. dead: filters of zeros, and their biases. unread: input channels with weights of zero."""
        inputs = self.channels(x)
        weight = self.normal((outputs, inputs // group, k, k)) / np.sqrt(inputs // group * k * k)
        shift = self.normal((outputs,), 0.5)
        for channel, value in (dead or {}).items():
            weight[channel], shift[channel] = 0, value
        weight[:, list(unread)] = 0
        name = name or self.fresh("conv")
        how |= {"group": group} if group > 1 else {}
        parts = self.const(weight, f"{name}_weight"), self.const(shift, f"{name}_bias")
        return self.op("Conv", x, *parts, name=name, **how)

    def integers(self, *values: int) -> str:
        return self.const(np.array(values), "integers", dtype="int64")


def counted(model: onnx.ModelProto) -> int:
    """The floating point numbers that a model stores."""
    stored = [*model.graph.initializer]
    stored += [a.t for node in model.graph.node for a in node.attribute if node.op_type == "Constant"]
    return sum(int(np.prod(tensor.dims)) for tensor in stored if tensor.data_type in (1, 10, 11, 16))


def lost(dropped: Dropped) -> Lost:
    counts = {layer.name: (len(layer.outputs), len(layer.inputs)) for layer in dropped.layers}
    return {name: count for name, count in counts.items() if count != (0, 0)}


def stated_sizes_hold(model: onnx.ModelProto) -> None:
    """The sizes of intermediate values that the file states are those that follow from the rest of it."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]
    found = {
        info.name: info for info in onnx.shape_inference.infer_shapes(bare, data_prop=True).graph.value_info
    }
    for info in model.graph.value_info:
        both = [each.type.tensor_type for each in (info, found.get(info.name, onnx.ValueInfoProto()))]
        if all(each.HasField("shape") for each in both):
            stated, right = (each.shape.dim for each in both)
            for ours, theirs in zip(stated, right, strict=True):
                assert not theirs.HasField("dim_value") or ours.dim_value == theirs.dim_value, info.name


def drop(g: Build) -> tuple[onnx.ModelProto, Dropped]:
    """The model without its dead channels: valid, computing the same, as small as the report says."""
    model = onnx.shape_inference.infer_shapes(g.model(), data_prop=True)
    before = model.SerializeToString()
    loaded = load(model)
    dropped = drop_dead_channels(loaded)
    result = loaded.to_proto()
    assert model.SerializeToString() == before
    onnx.checker.check_model(result, full_check=True)
    stated_sizes_hold(result)
    if not dropped.layers:
        assert result.SerializeToString() == before
    assert counted(model) - counted(result) == dropped.parameters
    feed = feeds(model, 0)
    wide = g.dtype in ("bfloat16", "float64")  # which onnxruntime has no Conv for
    evaluator = "reference" if wide else "onnxruntime"
    expected: list[Array] = run(model, feed, evaluator)
    assert difference(expected, run(result, feed, evaluator)) <= NEAR[g.dtype]
    return result, dropped
