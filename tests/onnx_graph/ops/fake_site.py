"""A node by itself, as the rows of the table of operators see it: no file, no graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bnfold.fold.graph import Constant, Role
from bnfold.fold.roles import Closed
from bnfold.onnx_graph.ops.table import role_of

__all__ = ["X", "FakeSite", "Runtime", "f32", "ints", "read", "refused", "run", "varying"]

RNG = np.random.default_rng(0)
NAMES = {1: "float32", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 11: "float64", 16: "bfloat16"}


class Runtime:
    """An input that is computed at run time: a shape, and a type."""

    def __init__(self, *shape: Any, dtype: int = TensorProto.FLOAT) -> None:
        self.shape, self.dtype = shape, dtype


class FakeSite:
    """One node and what is known about it, with the interface of `bnfold.onnx_graph.site.Site`.

    Inputs are constants (arrays), run-time tensors (`Runtime`, or just a shape), or None where left out.
    """

    def __init__(
        self,
        op: str,
        *inputs: Any,
        outputs: int = 1,
        used: tuple[int, ...] = (0,),
        opset: int = 20,
        domain: str = "",
        producer: FakeSite | None = None,
        y: tuple[Any, ...] | None = None,
        **attributes: Any,
    ) -> None:
        self.inputs = [Runtime(*item) if isinstance(item, tuple) else item for item in inputs]
        names = ["" if item is None else f"i{slot}" for slot, item in enumerate(self.inputs)]
        self.node = helper.make_node(
            op, names, [f"o{j}" for j in range(outputs)], "node", domain=domain, **attributes
        )
        self.op = f"{domain}.{op}" if domain not in ("", "ai.onnx") else op
        self.opset, self.name, self._used, self._producer = opset, "node", used, producer
        self.operands: set[int] = set()  # the slots whose constants the row wants as tensors
        self.model = self._model()
        self._shapes = {}
        inferred = self.model if domain else onnx.shape_inference.infer_shapes(self.model, data_prop=True)
        for info in inferred.graph.output:
            if info.type.tensor_type.HasField("shape"):
                dims = info.type.tensor_type.shape.dim
                self._shapes[info.name] = tuple(
                    d.dim_param or (d.dim_value if d.HasField("dim_value") else None) for d in dims
                )
        if y is not None:
            self._shapes["o0"] = y

    def _model(self) -> onnx.ModelProto:
        values, weights = [], []
        for name, item in zip(self.node.input, self.inputs, strict=True):
            if isinstance(item, Runtime):
                values.append(helper.make_tensor_value_info(name, item.dtype, item.shape))
            elif item is not None:
                weights.append(numpy_helper.from_array(item, name))
        outputs = [helper.make_empty_tensor_value_info(name) for name in self.node.output]
        graph = helper.make_graph([self.node], "g", values, outputs, weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)

    @property
    def attributes(self) -> dict[str, Any]:
        found = {entry.name: helper.get_attribute_value(entry) for entry in self.node.attribute}
        return {name: v.decode() if isinstance(v, bytes) else v for name, v in found.items()}

    def attr(self, name: str, default: Any = None) -> Any:
        return self.attributes.get(name, default)

    def has(self, slot: int) -> bool:
        return slot < len(self.inputs) and self.inputs[slot] is not None

    def constant(self, slot: int) -> Constant | None:
        value = self.value(slot)
        return None if value is None else Constant(f"i{slot}", lambda: value, value.shape, value.dtype.name)

    def value(self, slot: int) -> Any:
        item = self.inputs[slot] if self.has(slot) else None
        return item if isinstance(item, np.ndarray) else None

    def shape(self, slot: int) -> tuple[Any, ...] | None:
        item = self.inputs[slot] if self.has(slot) else None
        if isinstance(item, Runtime):
            return None if item.shape == ("?",) else item.shape
        return None if item is None else item.shape

    def out_shape(self, index: int = 0) -> tuple[Any, ...] | None:
        return self._shapes.get(self.node.output[index])

    def rank(self, slot: int) -> int | None:
        shape = self.shape(slot)
        return None if shape is None else len(shape)

    def dtype(self, slot: int) -> str:
        item = self.inputs[slot]
        return NAMES[item.dtype] if isinstance(item, Runtime) else item.dtype.name

    def used(self, index: int) -> bool:
        return index in self._used

    refers = False  # an attribute comes from the call of a function

    def operand(self, slot: int) -> bool:
        self.operands.add(slot)
        return self.value(slot) is not None

    def why_not_constant(self, slot: int) -> str:
        return "is an input"

    def cure(self, slot: int) -> str:
        return "store it"

    def producer_op(self, slot: int) -> str:
        return "" if self.producer(slot) is None else self.producer(slot).op

    def producer(self, slot: int) -> FakeSite | None:
        return self._producer if slot == 0 else None


def f32(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


def ints(*values: int) -> Any:
    return np.asarray(values, np.int64)


def read(op: str, *inputs: Any, **options: Any) -> Any:
    """The role of a node with one operator."""
    return role_of(FakeSite(op, *inputs, **options))  # type: ignore[arg-type]


def refused(role: Role) -> str:
    assert isinstance(role, Closed), role
    return role.reason


def run(site: FakeSite, x: Any, slot: int = 0) -> Any:
    """What the node computes from its one input of run time."""
    import onnxruntime  # (onnx's own evaluator does not know grouped ConvTranspose)

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(site.model.SerializeToString(), options, ["CPUExecutionProvider"])
    return session.run(None, {f"i{slot}": np.ascontiguousarray(x)})[0]


X = (2, 4, 8, 6)


def varying(shape: tuple[int, ...], *axes: int) -> Any:
    return RNG.standard_normal([size if axis in axes else 1 for axis, size in enumerate(shape)]).astype(
        np.float32
    )
