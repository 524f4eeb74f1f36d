"""One data file beside a model: what goes into it, its name, and when an old one has had its day."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterator
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
from onnx import TensorProto

from bnfold.errors import ModelError
from bnfold.onnx_graph.file.external import is_external, locations
from bnfold.onnx_graph.file.tensors import (
    Bytes,
    constants,
    encode,
    put,
    raw_size,
    tensors,
)

if TYPE_CHECKING:
    from bnfold.onnx_graph.file.loaded import Loaded

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
        places: dict[object, tuple[int, int]] = {}
        for old, (new, movable) in zip(tensors(loaded.proto), constants(self.proto), strict=True):
            if not is_external(old) and not (movable and _is_large(old, loaded)):
                continue
            # Tensors with the same place before have so again.
            key: object = object()
            if is_external(old):
                key = (tuple(sorted(locations(old).items())), old.data_type, tuple(old.dims))
            elif old.raw_data:
                key = old.raw_data
            if key not in places:
                places[key] = self._place(old)
            offset, length = places[key]
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

    def _place(self, tensor: TensorProto) -> tuple[int, int]:
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


def data_name(model: Path) -> str:
    """A free name for a data file beside `model`: an old pair must be whole until its model is replaced."""
    name = f"{model.name}.data"
    while os.path.lexists(model.with_name(name)):
        name = f"{model.name}-{secrets.token_hex(4)}.data"
    return name


def locations_of(model: onnx.ModelProto) -> set[str]:
    """The data files that a model refers to, as it names them."""
    return {locations(tensor).get("location", "") for tensor in tensors(model) if is_external(tensor)}


def own_data(model: Path) -> set[str]:
    """The data files that the model at this path refers to and that, by their names, were written with it."""
    ours = re.compile(re.escape(model.name) + r"(-[0-9a-f]{8})?\.data")
    try:
        names = {name for name in os.listdir(model.parent) if ours.fullmatch(name)}
        if not names or not model.is_file():
            return set()
        from bnfold.onnx_graph.file.loaded import load

        return names & locations_of(load(model).proto)
    except (OSError, ModelError):
        return set()


def remove_unused(model: Path, names: set[str]) -> None:
    """Remove these data files beside `model`, but for those that another model there mentions."""
    for name in names:
        # Better too many files than too few.
        with contextlib.suppress(OSError):
            if not any(_mentions(other, name) for other in model.parent.iterdir() if other != model):
                model.with_name(name).unlink(missing_ok=True)


def _mentions(path: Path, name: str) -> bool:
    if ".onnx" not in path.name or path.suffix == ".data" or not path.is_file() or path.stat().st_size == 0:
        return False
    with open(path, "rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
        return content.find(name.encode()) >= 0
