"""The data file beside a model: which tensors go into it, and where in it each of them lies."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import TensorProto

from bnfold.onnx_graph.file.external import is_external, locations
from bnfold.onnx_graph.file.loaded import Loaded
from bnfold.onnx_graph.file.tensors import Bytes, constants, encode, put, raw_size, tensors

# Bytes. Smaller tensors stay in the model file: they are mostly shapes and axes, which readers want at hand.
EXTERNAL_FROM = 1024
# Offsets. A reader can map a tensor that begins with a page; for small ones that would be mostly padding.
PAGE, PAGE_FROM, LINE = 4096, 1 << 16, 64


class DataFile:
    """The data of a model's tensors laid out in one file; `proto` is the skeleton that refers to it.

    What is at least EXTERNAL_FROM bytes large moves there, from wherever it is; what was in a data file
    before does so at any size. Attributes that not every runtime expects there (all but a Constant's value)
    stay.

    Raises:
        ModelError: as `Loaded.array`.
    """

    def __init__(self, loaded: Loaded, name: str) -> None:
        self._loaded = loaded
        self.proto = onnx.ModelProto()
        self.proto.CopyFrom(loaded.proto)
        # Not the bytes but the tensors that have them: those of a thousand files cannot be open at once.
        self._content: list[tuple[int, TensorProto]] = []
        self._end = 0
        known: dict[object, tuple[int, int]] = {}
        for old, (new, movable) in zip(tensors(loaded.proto), constants(self.proto), strict=True):
            if not is_external(old) and not (movable and _is_large(old, loaded)):
                continue
            # Tensors that shared their bytes before do so again.
            key: object = object()
            if is_external(old):
                key = (tuple(sorted(locations(old).items())), old.data_type, tuple(old.dims))
            elif old.raw_data:
                key = old.raw_data
            if key not in known:
                known[key] = self._reserve(old)
            offset, length = known[key]
            put(new, old.data_type, tuple(old.dims), b"")
            new.ClearField("raw_data")
            new.data_location = TensorProto.EXTERNAL
            for field, value in (("location", name), ("offset", str(offset)), ("length", str(length))):
                new.external_data.add(key=field, value=value)

    def __bool__(self) -> bool:
        """Whether anything is in it."""
        return bool(self._content)

    def chunks(self) -> Iterator[Bytes]:
        """What to write, one tensor after another."""
        at = 0
        for offset, tensor in self._content:
            if offset > at:
                yield bytes(offset - at)
            data = self._bytes(tensor)
            yield data
            at = offset + len(data)

    def _reserve(self, tensor: TensorProto) -> tuple[int, int]:
        """Offset and length of a tensor's bytes, behind all others."""
        length = len(self._bytes(tensor))
        step = PAGE if length >= PAGE_FROM else LINE
        offset = -(-self._end // step) * step
        self._content.append((offset, tensor))
        self._end = offset + length
        return offset, length

    def _bytes(self, tensor: TensorProto) -> Bytes:
        raw = self._loaded.raw(tensor)
        if raw is None:
            raw = encode(self._loaded.array(tensor))[1]
        assert raw is not None  # strings are never large
        return raw


def _is_large(tensor: TensorProto, loaded: Loaded) -> bool:
    raw = loaded.raw(tensor)
    if raw is not None:
        return len(raw) >= EXTERNAL_FROM
    try:
        size = raw_size(tensor.data_type, tensor.dims)
    except ValueError:
        return False  # a tensor that nobody can read stays as it is
    return size is not None and size >= EXTERNAL_FROM


def locations_of(model: onnx.ModelProto) -> set[str]:
    """The data files that a model refers to, as it names them."""
    return {locations(tensor).get("location", "") for tensor in tensors(model) if is_external(tensor)}
