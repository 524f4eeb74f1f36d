"""Models in which inputs, attributes, stored values or sizes are wrong."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

__all__ = ["damage"]


def damage(model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """The model itself, with one to three things wrong."""
    rng, graph = np.random.default_rng(seed), model.graph
    names = [value.name for value in (*graph.initializer, *graph.input)]
    names += [name for node in graph.node for name in node.output]
    for _ in range(int(rng.integers(1, 4))):
        node = graph.node[int(rng.integers(len(graph.node)))]
        slot = int(rng.integers(max(1, len(node.input))))
        kind = rng.integers(7)
        if kind == 0 and node.input:
            node.input[slot] = str(rng.choice([*names, ""]))
        elif kind == 1 and node.input:
            del node.input[-1]
        elif kind == 2 and node.attribute:
            del node.attribute[0]
        elif kind == 3 and node.attribute:
            attribute = node.attribute[-1]
            attribute.i, attribute.f = int(rng.integers(-3, 9)), float(rng.normal())
            if attribute.ints:
                attribute.ints[int(rng.integers(len(attribute.ints)))] = int(rng.integers(-3, 5))
        elif kind == 4 and graph.initializer:
            tensor = graph.initializer[int(rng.integers(len(graph.initializer)))]
            shape = rng.integers(0, 6, size=int(rng.integers(0, 5)))
            array = rng.normal(size=shape).astype(numpy_helper.to_array(tensor).dtype)
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(array), tensor.name))
        elif kind == 5:
            dims = graph.input[int(rng.integers(len(graph.input)))].type.tensor_type.shape.dim
            if dims:
                dims[int(rng.integers(len(dims)))].dim_value = int(rng.integers(0, 9))
        elif graph.value_info:
            info = graph.value_info[int(rng.integers(len(graph.value_info)))]
            for dim in info.type.tensor_type.shape.dim:
                dim.dim_value = int(rng.integers(0, 9))
    return model
