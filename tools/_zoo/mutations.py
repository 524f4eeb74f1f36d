"""Ways to make a folded model wrong by one number, attribute, operator, operand or edge; and its certificate.

A mutation changes a model in place, at a random place where it can be made, and names that place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, helper, numpy_helper

from bnfold.certificate import Certificate, Image, Key

__all__ = ["CLAIMS", "MODELS", "Claim", "Mutation", "Subject", "claims_of", "place", "shapes_of"]

Array: TypeAlias = np.ndarray[Any, Any]
# Returns the node that it has changed, or None where it finds no place.
Mutation: TypeAlias = "Callable[[Subject], NodeProto | None]"
# Of a claim that is not plain.
Claim: TypeAlias = "Callable[[Image, np.random.Generator], Image | None]"

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Subject:
    """What is changed. shapes: element type and dimensions of its tensors, as far as they are known."""

    graph: GraphProto
    rng: np.random.Generator
    shapes: Mapping[str, tuple[Any, ...]]

    def pick(self, fits: Callable[[NodeProto], bool]) -> NodeProto | None:
        """One of its nodes that fit."""
        found = [node for node in self.nodes() if fits(node)]
        return found[self.rng.integers(len(found))] if found else None

    def nodes(self) -> list[NodeProto]:
        """All but stored numbers."""
        return [node for node in self.graph.node if node.op_type != "Constant"]


def place(node: NodeProto) -> str:
    """What a node is found by: its first output."""
    return next((name for name in node.output if name), "")


# -- numbers


def _stored(graph: GraphProto) -> dict[str, TensorProto]:
    """What is stored, and is floating numbers, by name."""
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            found |= {place(node): a.t for a in node.attribute if a.name == "value"}
    return {name: tensor for name, tensor in found.items() if tensor.data_type in FLOATS}


def _number(
    change: Callable[[Array, np.random.Generator], Array | None],
    slots: slice = slice(None),
    ops: Sequence[str] = (),
) -> Mutation:
    """Of a stored tensor that a node reads at one of these slots. ops: of the node; (): any but LAYERS."""

    def mutate(on: Subject) -> NodeProto | None:
        stored = _stored(on.graph)

        def fits(node: NodeProto) -> bool:
            right = node.op_type in ops if ops else node.op_type not in LAYERS
            return right and any(name in stored for name in node.input[slots])

        node = on.pick(fits)
        if node is None:
            return None
        names = [name for name in node.input[slots] if name in stored]
        tensor = stored[names[on.rng.integers(len(names))]]
        value = numpy_helper.to_array(tensor).copy()
        changed = change(value.copy(), on.rng) if value.size else None
        if changed is None or np.array_equal(changed, value):
            return None
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(changed, value.dtype), tensor.name))
        return node

    return mutate


def _entry(change: Callable[[Any], Any]) -> Callable[[Array, np.random.Generator], Array]:
    def changed(value: Array, rng: np.random.Generator) -> Array:
        at = int(rng.integers(value.size))
        value.reshape(-1)[at] = change(value.reshape(-1)[at])
        return value

    return changed


def _ulps(count: int) -> Callable[[Array, np.random.Generator], Array]:
    def changed(value: Array, rng: np.random.Generator) -> Array:
        sign = int(rng.choice([-1, 1]))
        return _entry(lambda x: x + sign * count * np.spacing(np.abs(x)) if x else x)(value, rng)

    return changed


def _swapped(value: Array, rng: np.random.Generator) -> Array | None:
    """Two rows, or two columns."""
    axes = [axis for axis, size in enumerate(value.shape[:2]) if size > 1]
    if not axes:
        return None
    axis = axes[rng.integers(len(axes))]
    order = np.arange(value.shape[axis])
    i, j = rng.choice(order.size, 2, replace=False)
    order[[i, j]] = order[[j, i]]
    return value.take(order, axis)


def _row(value: Array, rng: np.random.Generator) -> Array | None:
    """One row by a hundred-thousandth."""
    if not value.ndim:
        return None
    value[rng.integers(value.shape[0])] *= 1 + 1e-5
    return value


def _without_bias(on: Subject) -> NodeProto | None:
    node = on.pick(lambda n: n.op_type in ("Conv", "Gemm") and len(n.input) > 2)
    if node is not None:
        del node.input[2:]
    return node


# -- attributes


def _attribute(
    name: str, change: Callable[[Any, np.random.Generator], Any], ops: Sequence[str] = ()
) -> Mutation:
    """Of one that a node states. change: gives the new value, or None where there is no other."""

    def mutate(on: Subject) -> NodeProto | None:
        def fits(node: NodeProto) -> bool:
            return (not ops or node.op_type in ops) and any(a.name == name for a in node.attribute)

        node = on.pick(fits)
        if node is None:
            return None
        attribute = next(a for a in node.attribute if a.name == name)
        old = helper.get_attribute_value(attribute)
        old = list(old) if attribute.type in (AttributeProto.INTS, AttributeProto.FLOATS) else old
        new = change(old, on.rng)
        if new is None or new == old:
            return None
        attribute.CopyFrom(helper.make_attribute(name, new))
        return node

    return mutate


def _pads(value: list[int], _: np.random.Generator) -> list[int] | None:
    """The window moves by one place."""
    half = len(value) // 2
    return [value[0] - 1, *value[1:half], value[half] + 1, *value[half + 1 :]] if value[0] else None


def _another(value: list[int], rng: np.random.Generator) -> list[int] | None:
    """One of the numbers by one."""
    if not value:
        return None
    at = int(rng.integers(len(value)))
    return [max(0, n + int(rng.choice([-1, 1]))) if i == at else n for i, n in enumerate(value)]


def _strides(value: list[int], _: np.random.Generator) -> list[int]:
    return [1] * len(value) if max(value, default=1) > 1 else [2] * len(value)


# -- operators, operands, edges

OPERATORS = {
    "Abs": "Neg", "Add": "Sub", "Div": "Mul", "Elu": "Selu", "Erf": "Tanh", "HardSigmoid": "Sigmoid",
    "GlobalAveragePool": "GlobalMaxPool", "HardSwish": "Relu", "LeakyRelu": "Elu", "Max": "Min",
    "MaxPool": "AveragePool", "Min": "Max", "Mul": "Div", "ReduceMax": "ReduceMin", "ReduceMean": "ReduceMax",
    "Relu": "LeakyRelu", "Sigmoid": "Tanh", "Softmax": "LogSoftmax", "Sqrt": "Exp", "Sub": "Add",
    "Tanh": "Sigmoid",
}  # fmt: skip
KEPT = frozenset({"Relu", "LeakyRelu", "Sigmoid", "Tanh", "HardSwish", "HardSigmoid", "Erf", "Abs", "Clip"})


def _operator(on: Subject) -> NodeProto | None:
    node = on.pick(lambda n: n.op_type in OPERATORS and not n.domain)
    if node is not None:
        node.op_type = OPERATORS[node.op_type]
    return node


def _gone(on: Subject) -> NodeProto | None:
    node = on.pick(lambda n: n.op_type in KEPT and not n.domain)
    if node is not None:
        node.op_type = "Identity"
        del node.attribute[:], node.input[1:]
    return node


def _operands(on: Subject) -> NodeProto | None:
    """Two of them, of operators that care."""
    ops = ("Sub", "Div", "Concat", "Pow", "MatMul", "Where")
    node = on.pick(lambda n: n.op_type in ops and len(set(n.input)) > 1)
    if node is None:
        return None
    names = list(node.input)
    i, j = on.rng.choice(len(names), 2, replace=False)
    if names[i] == names[j]:
        return None
    names[i], names[j] = names[j], names[i]
    node.input[:] = names
    return node


def _edge(on: Subject) -> NodeProto | None:
    """An operand becomes another tensor of its shape, made before."""
    nodes = on.nodes()
    for at in on.rng.permutation(len(nodes)):
        node: NodeProto = nodes[at]
        slots = [i for i, name in enumerate(node.input) if name in on.shapes]
        if not slots:
            continue
        slot = slots[on.rng.integers(len(slots))]
        before = [v.name for v in on.graph.input] + [name for n in nodes[:at] for name in n.output]
        wanted = on.shapes[node.input[slot]]
        others = [n for n in before if on.shapes.get(n) == wanted and n not in node.input]
        if others:
            node.input[slot] = others[on.rng.integers(len(others))]
            return node
    return None


def shapes_of(graph: GraphProto) -> dict[str, tuple[Any, ...]]:
    """Element type and dimensions that the graph states."""
    found = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        dims = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param for d in tensor.shape.dim)
        if tensor.HasField("shape") and all(dims):
            found[value.name] = (tensor.elem_type, *dims)
    return found


MODELS: Mapping[str, Mutation] = {
    "2 ulps of a weight": _number(_ulps(2), slice(0, 2), LAYERS),
    "8 ulps of a weight": _number(_ulps(8), slice(0, 2), LAYERS),
    "8 ulps of a bias": _number(_ulps(8), slice(2, None), LAYERS),
    "a weight of zero": _number(_entry(lambda x: x * 0), slice(0, 2), LAYERS),
    "a weight's sign": _number(_entry(lambda x: -x), slice(0, 2), LAYERS),
    "a bias of zero": _number(_entry(lambda x: x * 0), slice(2, None), LAYERS),
    "rows swapped": _number(_swapped, slice(0, 2), LAYERS),
    "a row by 1e-5": _number(_row, slice(0, 2), LAYERS),
    "a bias dropped": _without_bias,
    "a constant by 1e-3": _number(_entry(lambda x: x * (1 + 1e-3))),
    "a constant by 2e-6": _number(_entry(lambda x: x * (1 + 2e-6))),
    "epsilon": _attribute("epsilon", lambda v, _: v * 2),
    "pads": _attribute("pads", _pads),
    "kernel": _attribute("pads", lambda v, _: [n + 1 for n in v[: len(v) // 2]] + v[len(v) // 2 :]),
    "strides": _attribute("strides", _strides),
    "dilations": _attribute("dilations", lambda v, _: [2 if n == 1 else 1 for n in v]),
    "ceil_mode": _attribute("ceil_mode", lambda v, _: 1 - v),
    "count_include_pad": _attribute("count_include_pad", lambda v, _: 1 - v),
    "axis": _attribute("axis", lambda v, rng: v + int(rng.choice([-1, 1]))),
    "axes": _attribute("axes", _another),
    "perm": _attribute("perm", lambda v, _: v[::-1]),
    "alpha": _attribute("alpha", lambda v, _: v * 1.001),
    "beta": _attribute("beta", lambda v, _: v * 1.001),
    "group": _attribute("group", lambda v, _: 1 if v > 1 else 2),
    "transposed": _attribute("transB", lambda v, _: 1 - v),
    "keepdims": _attribute("keepdims", lambda v, _: 1 - v),
    "operator": _operator,
    "operator gone": _gone,
    "operands": _operands,
    "edge": _edge,
}


# -- certificates


def _of_claim(field: str, change: Callable[[float], float]) -> Claim:
    def changed(image: Image, rng: np.random.Generator) -> Image:
        value = np.array(getattr(image, field), np.float64)
        at = int(rng.integers(value.size))
        value.reshape(-1)[at] = change(value.reshape(-1)[at])
        changes: dict[str, Any] = {field: value}
        return replace(image, **changes)

    return changed


CLAIMS: Mapping[str, Claim] = {
    "another p": _of_claim("p", lambda p: p * (1 + 1e-6)),
    "another sign": _of_claim("p", lambda p: -p),
    "another q": _of_claim("q", lambda q: q + 1e-5),
    "claim dropped": lambda _image, _rng: None,
}


def claims_of(certificate: Certificate) -> Iterator[Key]:
    """Those that say something."""
    return (key for key, image in certificate.images.items() if image is not None and not image.plain)
