"""The numbers of a TensorProto: where they may be, how they are encoded, and what they are in numpy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import TensorProto

Array: TypeAlias = "np.ndarray[Any, Any]"
Bytes: TypeAlias = "bytes | memoryview"

# raw_data is little-endian, whatever the machine.
_NUMPY: dict[int, np.dtype[Any]] = {
    TensorProto.FLOAT: np.dtype("<f4"),
    TensorProto.UINT8: np.dtype("u1"),
    TensorProto.INT8: np.dtype("i1"),
    TensorProto.UINT16: np.dtype("<u2"),
    TensorProto.INT16: np.dtype("<i2"),
    TensorProto.INT32: np.dtype("<i4"),
    TensorProto.INT64: np.dtype("<i8"),
    TensorProto.BOOL: np.dtype("?"),
    TensorProto.FLOAT16: np.dtype("<f2"),
    TensorProto.DOUBLE: np.dtype("<f8"),
    TensorProto.UINT32: np.dtype("<u4"),
    TensorProto.UINT64: np.dtype("<u8"),
    TensorProto.COMPLEX64: np.dtype("<c8"),
    TensorProto.COMPLEX128: np.dtype("<c16"),
}
_CODES = {dtype: code for code, dtype in _NUMPY.items()}
# By number, since older releases of onnx do not know them all.
_ML_DTYPES = {
    16: "bfloat16",
    17: "float8_e4m3fn",
    18: "float8_e4m3fnuz",
    19: "float8_e5m2",
    20: "float8_e5m2fnuz",
    24: "float8_e8m0fnu",
}
_PACKED_BITS = {21: 4, 22: 4, 23: 4, 25: 2, 26: 2}  # uint4, int4, float4e2m1, uint2, int2
# All that says what and where the numbers are. (dims, data_type and raw_data are always written anew.)
_DATA_FIELDS = (
    "float_data",
    "int32_data",
    "string_data",
    "int64_data",
    "double_data",
    "uint64_data",
    "external_data",
    "data_location",
    "segment",
)


def as_text(value: str | bytes) -> str:
    """A string of a file; protobuf gives bytes where it is not UTF-8."""
    return value if isinstance(value, str) else value.decode(errors="backslashreplace")


def raw_size(data_type: int, dims: Sequence[int]) -> int | None:
    """How many bytes of raw_data such a tensor has; None for a type that has none (strings) or is unknown.

    Raises:
        ValueError: a dimension is negative.
    """
    if min(dims, default=0) < 0:
        raise ValueError(f"its shape {list(dims)} is negative")
    count = math.prod(dims)
    if data_type in _PACKED_BITS:
        return -(-count * _PACKED_BITS[data_type] // 8)
    dtype = _dtype(data_type)
    return None if dtype is None else count * dtype.itemsize


def decode(data_type: int, dims: Sequence[int], raw: Bytes) -> Array:
    """The array in `raw` (encoded as raw_data is): a read-only view, but a copy for types of less than a
    byte.

    Raises:
        ValueError: the sizes disagree, or the type is unknown; the message goes on from "tensor 'x': ".
    """
    dims, dtype = tuple(dims), _dtype(data_type)
    if dtype is not None and len(raw) == math.prod(dims) * dtype.itemsize and min(dims or (1,)) > 0:
        array: Array = np.frombuffer(raw, dtype)
        return array if len(dims) == 1 else array.reshape(dims)
    size = raw_size(data_type, dims)
    if size is None:
        raise ValueError(f"its element type {_type_name(data_type)} has no raw data that could be read")
    if size != len(raw):
        raise ValueError(
            f"its shape {list(dims)} of {_type_name(data_type)} needs {size} bytes, but there are {len(raw)}"
        )
    if dtype is None:
        packed = TensorProto(data_type=data_type, dims=dims, raw_data=bytes(raw))
        return _read_only(onnx.numpy_helper.to_array(packed))
    return _read_only(np.empty(dims, dtype))


def decode_fields(tensor: TensorProto) -> Array:
    """The array in float_data, int32_data and so on.

    Raises:
        ValueError: as `decode`.
    """
    if min(tensor.dims, default=0) < 0:
        raise ValueError(f"its shape {list(tensor.dims)} is negative")
    if tensor.HasField("segment"):
        raise ValueError("it is cut into segments, which nothing supports")
    if tensor.data_type == TensorProto.UNDEFINED:
        raise ValueError("it has no element type")
    try:
        array: Array = onnx.numpy_helper.to_array(tensor)
    except Exception as error:  # whatever the bytes bring about
        shape = f"its shape {list(tensor.dims)} of {_type_name(tensor.data_type)}"
        raise ValueError(f"{shape} does not fit its data ({' '.join(str(error).split())})") from None
    return _read_only(array)


def encode(array: Array) -> tuple[int, Bytes | None]:
    """The element type of an array, and its raw_data: a view where it is contiguous; None for strings.

    Raises:
        ValueError: ONNX has no such element type.
    """
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    code = _CODES.get(array.dtype)
    if code is None:
        if array.dtype.kind in "OUS":
            return TensorProto.STRING, None
        try:
            code = int(onnx.helper.np_dtype_to_tensor_dtype(array.dtype))
        except (KeyError, ValueError):
            raise ValueError(f"ONNX has no element type for {array.dtype}") from None
    if code in _PACKED_BITS:
        return code, onnx.numpy_helper.from_array(array).raw_data
    if array.size == 0:
        return code, b""
    array = np.ascontiguousarray(array)
    if code in _NUMPY:
        return code, array.data.cast("B").toreadonly()
    return code, array.reshape(-1).view(np.uint8).data.toreadonly()  # memoryview does not know the type


def put(tensor: TensorProto, data_type: int, dims: Iterable[int], raw: bytes) -> None:
    """Give the tensor these numbers and no others; its name, documentation and metadata stay."""
    if tensor.data_location or not tensor.HasField("raw_data"):  # else a valid tensor has no others
        for field in _DATA_FIELDS:
            tensor.ClearField(field)
    tensor.dims[:] = dims
    tensor.data_type = data_type
    tensor.raw_data = raw


def put_strings(tensor: TensorProto, array: Array) -> None:
    """`put` for an array of strings."""
    put(tensor, TensorProto.STRING, array.shape, b"")
    tensor.ClearField("raw_data")
    tensor.string_data[:] = [s if isinstance(s, bytes) else str(s).encode() for s in array.ravel().tolist()]


def tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Every tensor that carries numbers: initializers and attributes, of functions and inner graphs too."""
    return (tensor for tensor, _ in constants(model))


def constants(model: onnx.ModelProto) -> Iterator[tuple[TensorProto, bool]]:
    """`tensors`, and whether runtimes know each as a constant: an initializer, or an attribute `value`."""
    for function in model.functions:
        yield from _in_attributes(function.attribute_proto)
        yield from _in_nodes(function.node)
    for training in model.training_info:
        yield from _in_graph(training.initialization)
        yield from _in_graph(training.algorithm)
    yield from _in_graph(model.graph)


def _in_graph(graph: onnx.GraphProto) -> Iterator[tuple[TensorProto, bool]]:
    for tensor in graph.initializer:
        yield tensor, True
    for sparse in graph.sparse_initializer:
        yield sparse.values, True
        yield sparse.indices, True
    yield from _in_nodes(graph.node)


def _in_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[tuple[TensorProto, bool]]:
    for node in nodes:
        if node.attribute:
            yield from _in_attributes(node.attribute)


def _in_attributes(attributes: Iterable[onnx.AttributeProto]) -> Iterator[tuple[TensorProto, bool]]:
    # By what is there, not by `type`, which files of the first IR versions lack.
    for attribute in attributes:
        if attribute.HasField("t"):
            yield attribute.t, attribute.name == "value"
        if attribute.HasField("g"):
            yield from _in_graph(attribute.g)
        for graph in attribute.graphs:
            yield from _in_graph(graph)
        for tensor in attribute.tensors:
            yield tensor, False
        if attribute.HasField("sparse_tensor"):
            yield attribute.sparse_tensor.values, False
            yield attribute.sparse_tensor.indices, False
        for sparse in attribute.sparse_tensors:
            yield sparse.values, False
            yield sparse.indices, False


@cache
def _dtype(data_type: int) -> np.dtype[Any] | None:
    """numpy's dtype where each element has whole bytes of its own, else None."""
    if data_type in _ML_DTYPES:
        import ml_dtypes

        exotic: np.dtype[Any] = np.dtype(getattr(ml_dtypes, _ML_DTYPES[data_type]))
        return exotic
    return _NUMPY.get(data_type)


def _type_name(data_type: int) -> str:
    try:
        return str(TensorProto.DataType.Name(data_type)).lower()
    except ValueError:
        return f"number {data_type}"


def _read_only(array: Array) -> Array:
    array.flags.writeable = False
    return array
