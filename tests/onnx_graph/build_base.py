"""The ground of the model builder: names, types, constants, nodes, inner graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import onnx
from onnx import helper, numpy_helper

Array: TypeAlias = np.ndarray[Any, Any]
Shape: TypeAlias = "Sequence[int | str | None]"
Maker: TypeAlias = "Callable[[Any, str, Array], str]"  # stores an array under a name, in its own way

DTYPES: dict[str, Any] = {
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float32": np.float32,
    "float64": np.float64,
}


class Base:
    """A graph under construction. Methods that add a node take and return names of tensors.

    opset, ir: of the model; ir by default the oldest that allows the opset (at least 4). dtype: of inputs,
    weights and parameters. how: how weights and parameters are stored: "initializer", "constant" (a Constant
    node) or a function of (builder, name, array). signs: of batch norm scales, unless a call says otherwise.
    """

    def __init__(
        self,
        opset: int = 18,
        seed: int = 0,
        *,
        ir: int | None = None,
        dtype: str = "float32",
        how: str | Maker = "initializer",
        signs: str = "mixed",
        parent: Base | None = None,
    ) -> None:
        self.opset, self.ir, self.dtype = opset, ir, dtype
        self.how, self.signs, self.parent = how, signs, parent
        self.rng: np.random.Generator = np.random.default_rng(seed) if parent is None else parent.rng
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[str] = []
        self.initializers: list[onnx.TensorProto] = []
        self.noted: list[onnx.ValueInfoProto] = []
        self.functions: list[onnx.FunctionProto] = []
        self.function_types: dict[str, list[onnx.TypeProto]] = {}
        self.types: dict[str, onnx.TypeProto] = {}
        self.values: dict[str, Array] = {}  # of constants, for shape inference
        self.taken: set[str] = set() if parent is None else parent.taken

    # names, types, shapes

    def fresh(self, name: str) -> str:
        """`name`, with a number behind it where it is taken already."""
        found, count = name, 1
        while found in self.taken:
            found, count = f"{name}_{count}", count + 1
        self.taken.add(found)
        return found

    def type_of(self, tensor: str) -> onnx.TypeProto:
        if tensor in self.types or self.parent is None:
            return self.types[tensor]
        return self.parent.type_of(tensor)

    def shape(self, tensor: str) -> tuple[int | str | None, ...]:
        dims = self.type_of(tensor).tensor_type.shape.dim
        return tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in dims)

    def channels(self, tensor: str, axis: int = 1) -> int:
        size = self.shape(tensor)[axis]
        assert isinstance(size, int), f"{tensor} has {size} channels"
        return size

    # what goes in and out

    def input(self, name: str, shape: Shape, dtype: str | None = None) -> str:
        """A graph input; sizes may be names. dtype as in numpy, by default the builder's."""
        self.taken.add(name)
        value = helper.make_tensor_value_info(name, _code(dtype or self.dtype), list(shape))
        self.inputs.append(value)
        self.types[name] = value.type
        return name

    def output(self, *tensors: str) -> None:
        self.outputs += tensors

    def expose(self, *names: str) -> None:
        """Make initializers inputs too (from IR 4 on the caller may then override them)."""
        self.inputs += [
            helper.make_tensor_value_info(t.name, t.data_type, t.dims)
            for t in self.initializers
            if t.name in names
        ]

    def const(
        self, value: Any, name: str = "c", how: str | Maker | None = None, dtype: str | None = None
    ) -> str:
        """A constant: floats in the builder's type unless `dtype` says otherwise, integers as they are."""
        array = np.asarray(value)
        if dtype is not None or array.dtype.kind == "f":
            array = array.astype(DTYPES.get(dtype or self.dtype) or dtype)
        how = self.how if how is None else how
        if callable(how):
            return how(self, name, array)
        if how == "constant":
            tensor = numpy_helper.from_array(array, f"{name}_value")
            return self._typed(
                self.op("Constant", name=self.fresh(f"{name}_constant"), out=name, value=tensor), array
            )
        name = self.fresh(name)
        self.initializers.append(numpy_helper.from_array(array, name))
        return self._typed(name, array)

    def note(self, tensor: str) -> None:
        """Tell the type and shape of a tensor in the model."""
        self.noted.append(onnx.ValueInfoProto(name=tensor, type=self.type_of(tensor)))

    def ints(self, *values: int, name: str = "shape") -> str:
        return self.const(np.asarray(values, np.int64), name, how="initializer")

    def _typed(self, name: str, array: Array) -> str:
        self.types[name] = helper.make_tensor_type_proto(
            helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
        )
        if array.size < 1000:
            self.values[name] = array
        return name

    # nodes

    def op(
        self,
        kind: str,
        *inputs: str,
        name: str | None = None,
        out: str | None = None,
        domain: str = "",
        **attrs: Any,
    ) -> str:
        """Add a node with one output, and return its name."""
        return self.ops(kind, *inputs, count=1, name=name, out=out, domain=domain, **attrs)[0]

    def ops(
        self,
        kind: str,
        *inputs: str,
        count: int,
        name: str | None = None,
        out: str | None = None,
        domain: str = "",
        **attrs: Any,
    ) -> list[str]:
        """Add a node with `count` outputs."""
        name = self.fresh(kind.lower()) if name is None else name
        self.taken.add(name)
        stem = out or f"{name}_out"
        outputs = [self.fresh(stem if count == 1 else f"{stem}{i}") for i in range(count)]
        node = helper.make_node(kind, list(inputs), outputs, name=name, domain=domain, **attrs)
        self.nodes.append(node)
        self._infer(node)
        return outputs

    def _infer(self, node: onnx.NodeProto) -> None:
        inner = [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
        if inner or node.domain:
            found = [value.type for value in inner[0].output] if inner else self.function_types[node.op_type]
            self.types.update(zip(node.output, found[len(found) - len(node.output) :], strict=True))
            return
        schema = onnx.defs.get_schema(node.op_type, self.opset)
        types = {name: self.type_of(name) for name in node.input if name}
        data = {
            name: numpy_helper.from_array(v) for name in node.input if (v := self.value(name)) is not None
        }
        opsets = [helper.make_opsetid("", self.opset)]
        known = onnx.shape_inference.infer_node_outputs(schema, node, types, data, opset_imports=opsets)
        if node.op_type == "GroupNormalization":  # a function, of which this says nothing
            known = {node.output[0]: types[node.input[0]]}
        self.types.update(known)

    def value(self, tensor: str) -> Array | None:
        if tensor in self.values or self.parent is None:
            return self.values.get(tensor)
        return self.parent.value(tensor)

    # bodies and models

    def body(self) -> Any:
        """A builder of a graph inside this one (a branch of If, a body of Loop), which sees its tensors."""
        return type(self)(self.opset, dtype=self.dtype, how=self.how, signs=self.signs, parent=self)

    def graph(self, name: str = "g") -> onnx.GraphProto:
        outputs = [onnx.ValueInfoProto(name=tensor) for tensor in self.outputs]
        for value in outputs:
            if value.name in self.types:
                value.type.CopyFrom(self.types[value.name])
        return helper.make_graph(
            self.nodes, name, self.inputs, outputs, self.initializers, value_info=self.noted
        )

    def function(self, name: str, inputs: Sequence[str]) -> None:
        """Make this builder's nodes a function of its parent's model, in the domain "test"."""
        assert self.parent is not None
        assert not self.initializers, "a function has none"
        opsets = [helper.make_opsetid("", self.opset)]
        made = helper.make_function("test", name, list(inputs), self.outputs, self.nodes, opsets)
        self.parent.functions.append(made)
        self.parent.function_types[name] = [self.types[output] for output in self.outputs]

    def model(self) -> onnx.ModelProto:
        """The model, checked."""
        opsets = [helper.make_opsetid("", self.opset)]
        opsets += [helper.make_opsetid("test", 1)] if self.function_types else []
        ir = self.ir or max(4, helper.find_min_ir_version_for(opsets, ignore_unknown=True))
        made = helper.make_model(self.graph(), opset_imports=opsets, ir_version=ir, functions=self.functions)
        onnx.checker.check_model(made)
        return made


def _code(dtype: str) -> int:
    return helper.np_dtype_to_tensor_dtype(np.dtype(DTYPES.get(dtype, dtype)))
