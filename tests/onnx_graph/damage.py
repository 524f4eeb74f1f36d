"""Models in which inputs, attributes, stored values or sizes are wrong, or any field or byte of the file."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from onnx import numpy_helper

__all__ = ["damage", "garble"]

_WHOLE = (0, 1, 2, 3, 5, 7, 11, 64, -1, -2, 1 << 16, 1 << 31, (1 << 31) - 1, -(1 << 31), 1 << 40, 2**63 - 1)
_REAL = (0.0, -0.0, 1.0, -1.0, 1e-38, 3e38, float("inf"), float("-inf"), float("nan"))
_TEXT = ("", "x", "y", "Conv", "Relu", "Add", "BatchNormalization", "If", "axis", "ai.onnx", "n" * 5000)


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


def garble(model: onnx.ModelProto, seed: int) -> bytes:
    """A damaged file: bytes are changed, cut or inserted, or fields are retyped, cleared or enlarged."""
    rng = np.random.default_rng(seed)
    if rng.random() < 0.65:
        damaged = onnx.ModelProto()
        damaged.CopyFrom(model)
        for _ in range(int(rng.integers(1, 4))):
            _garble_field(damaged, rng)
        if rng.random() < 0.9:
            return damaged.SerializeToString()
        model = damaged
    content = bytearray(model.SerializeToString())
    for _ in range(int(rng.integers(1, 6))):
        at = int(rng.integers(max(1, len(content))))
        kind = rng.random()
        if kind < 0.6:
            content[at : at + 1] = rng.bytes(1)
        elif kind < 0.8:
            content[at : at + 1] = [content[at] ^ 1 << int(rng.integers(8))] if content else b"x"
        elif kind < 0.9:
            del content[at : at + int(rng.integers(1, 9))]
        else:
            content[at:at] = rng.bytes(int(rng.integers(1, 9)))
    return bytes(content if rng.random() < 0.95 else content[: int(rng.integers(len(content) + 1))])


def _garble_field(model: Message, rng: np.random.Generator) -> None:
    """One field of a message somewhere in the model."""
    messages, found = [model], []
    while messages:
        message = messages.pop()
        found.append(message)
        for field, value in message.ListFields():
            if field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
                messages += list(value) if _is_list(message, field) else [value]
    message = found[int(rng.integers(len(found)))]
    present = [field for field, _ in message.ListFields()]
    every = list(message.DESCRIPTOR.fields)
    pool = present if present and rng.random() < 0.8 else every
    field = pool[int(rng.integers(len(pool)))]
    if rng.random() < 0.15:
        message.ClearField(field.name)
    elif not _is_list(message, field):
        if field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
            getattr(message, field.name).SetInParent()
        else:
            setattr(message, field.name, _scalar(field, rng, getattr(message, field.name)))
    else:
        _garble_list(getattr(message, field.name), field, rng)


def _garble_list(entries: Any, field: Any, rng: np.random.Generator) -> None:
    at = int(rng.integers(len(entries))) if len(entries) else -1
    kind = rng.random()
    if at >= 0 and kind < 0.3:
        del entries[at]
    elif field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
        if at < 0 or kind < 0.4:
            entries.add()
        else:
            entries.extend([entries[at]] * (1 if kind < 0.9 else 300))
    elif at >= 0 and kind < 0.7:
        entries[at] = _scalar(field, rng, entries[at])
    else:
        entries.extend([_scalar(field, rng, None)] * (1 if kind < 0.95 else 300))


def _scalar(field: Any, rng: np.random.Generator, old: Any) -> Any:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        numbers = [value.number for value in field.enum_type.values]
        return numbers[int(rng.integers(len(numbers)))]
    if kind == FieldDescriptor.CPPTYPE_STRING:
        if field.type == FieldDescriptor.TYPE_BYTES:
            return rng.bytes(int(rng.integers(20))) if rng.random() < 0.5 else (old or b"")[:-1]
        return _TEXT[int(rng.integers(len(_TEXT)))]
    if kind in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return _REAL[int(rng.integers(len(_REAL)))]
    number = _WHOLE[int(rng.integers(len(_WHOLE)))]
    narrow = kind in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_UINT32)
    number = int(np.int64(number).astype(np.int32)) if narrow else number
    return abs(number) if kind in (FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64) else number


def _is_list(message: Message, field: Any) -> bool:
    value = getattr(message, field.name)
    return hasattr(value, "__len__") and not isinstance(value, (str, bytes))
