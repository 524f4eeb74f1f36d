"""What a tool left in a file: batch norms, and other per-channel nodes that were not there before.

A batch norm that a tool only rewrites as Mul and Add, or as a depthwise 1x1 conv, is still work to be done at
run time. Such nodes are told from the network's own ones by comparing with the graph before any folding.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

INTEGER = ("ConvInteger", "MatMulInteger")  # without a bias


@dataclass(frozen=True)
class PerChannel:
    """A Mul, Add, Sub or Div by one number a channel, or a depthwise 1x1 conv. digest: of its constant."""

    op: str
    output: str
    digest: str


@dataclass(frozen=True)
class Left:
    """What is left of a model's batch norms: as they were, and as other per-channel nodes."""

    batch_norms: int
    per_channel: int

    @property
    def total(self) -> int:
        return self.batch_norms + self.per_channel


def left(path: Path, own: frozenset[PerChannel]) -> Left:
    """What is left in the file at `path`; `own` are the per-channel nodes of the network itself."""
    count, nodes = inspect(path)
    outputs, digests = {node.output for node in own}, {(node.op, node.digest) for node in own}
    new = [node for node in nodes if node.output not in outputs and (node.op, node.digest) not in digests]
    return Left(count, len(new))


def inspect(path: Path) -> tuple[int, frozenset[PerChannel]]:
    """How many batch norms a file has, and its per-channel nodes, once all that is constant is computed."""
    import onnx_ir
    from onnxscript.optimizer import _constant_folding

    model = onnx_ir.load(path)
    onnx_ir.passes.common.InlinePass()(model)
    limit = _constant_folding.DEFAULT_CONSTANT_FOLD_OUTPUT_SIZE_LIMIT
    _constant_folding.FoldConstantsPass(
        shape_inference=True, input_size_limit=limit, output_size_limit=limit
    )(model)
    onnx_ir.passes.common.RemoveUnusedNodesPass()(model)
    batch_norms, nodes = 0, []
    computed: set[Any] = set()  # constants that are too large to have been computed above
    for node in model.graph.all_nodes():
        values = [value for value in node.inputs if value is not None]
        if values and all(value in computed or value.const_value is not None for value in values):
            computed.update(node.outputs)
        elif node.op_type == "BatchNormalization":
            batch_norms += 1
        elif node.domain in ("", "ai.onnx"):
            digest = _per_channel(node, computed)
            if digest:
                nodes.append(PerChannel(node.op_type, str(node.outputs[0].name), digest))
    return batch_norms, frozenset(nodes)


def _per_channel(node: Any, computed: set[Any]) -> str:
    """The digest of the node's constant if it is a per-channel one, else ""."""
    if node.op_type in ("Mul", "Add", "Sub", "Div"):
        for value, other in (node.inputs, node.inputs[::-1]):
            array = _constant(value)
            if array is None or array.size < 2 or array.size != max(array.shape):
                continue
            return "" if node.op_type == "Add" and _product(other, computed) else _digest(array)
    if node.op_type == "Conv":
        weight = _constant(node.inputs[1])
        groups = node.attributes["group"].as_int() if "group" in node.attributes else 1
        if weight is not None and groups == weight.size > 1:
            return _digest(weight)
    return ""


def _constant(value: Any) -> np.ndarray[Any, Any] | None:
    if value is None or value.const_value is None:
        return None
    return np.asarray(value.const_value.numpy())


def _product(value: Any, computed: set[Any]) -> bool:
    """Made by a product with stored weights that has no bias of its own, and so needs an Add anyway."""
    node = value.producer() if value is not None else None
    if node is not None and node.op_type == "Mul":  # an integer product is rescaled
        casts = [v.producer() for v in node.inputs if v is not None and v.producer() is not None]
        sources = [cast.inputs[0].producer() for cast in casts if cast.op_type == "Cast"]
        return any(each is not None and each.op_type in INTEGER for each in sources)
    if node is None or node.op_type != "MatMul":
        return False
    return any(value in computed or _constant(value) is not None for value in node.inputs)


def _digest(array: np.ndarray[Any, Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]
