"""Tensor data in other files than the model's: found only where it may be, mapped instead of read."""

from __future__ import annotations

import os
import stat
from collections import OrderedDict
from mmap import ACCESS_READ, mmap
from pathlib import Path, PureWindowsPath

from onnx import TensorProto

from bnfold.errors import ModelError
from bnfold.onnx_graph.file.tensors import Bytes, as_text, raw_size

# Bytes, files. Each mapped file takes a file descriptor while it is in use, and some exporters write one file
# for each tensor: small ones are read instead, and only so many are kept at hand.
MAP_FROM = 1 << 20
KEPT = 64


def is_external(tensor: TensorProto) -> bool:
    """Whether the tensor's numbers are in another file."""
    return tensor.data_location == TensorProto.EXTERNAL


def locations(tensor: TensorProto) -> dict[str, str]:
    """Where the tensor says that its numbers are: location, offset, length."""
    return {as_text(entry.key): as_text(entry.value) for entry in tensor.external_data}


class DataFiles:
    """The data files of one model. `model`: its path, whose folder they must be in."""

    def __init__(self, model: Path) -> None:
        self.model = model
        self._folder = model.absolute().parent
        self._open_files: OrderedDict[str, Bytes] = OrderedDict()

    def read(self, tensor: TensorProto) -> memoryview:
        """The raw data of an external tensor, read-only, from the page cache.

        Raises:
            ModelError: the file is not allowed, not there, or too small; it names the tensor and the file.
        """
        stated = locations(tensor)
        location = stated.get("location", "")
        whose = f"{self.model}: tensor {tensor.name!r}: its data file {location!r}"
        try:
            size = raw_size(tensor.data_type, tensor.dims)
        except ValueError as error:
            raise ModelError(f"{self.model}: tensor {tensor.name!r}: {error}") from None
        content = self._file(location, whose)
        offset = _number(stated.get("offset", "0"), "offset", whose)
        rest = len(content) - offset
        if "length" in stated:
            length = _number(stated["length"], "length", whose)
        else:
            length = rest if size is None else size
        if offset > len(content) or length > rest:
            raise ModelError(
                f"{whose} has {len(content)} bytes, but the tensor's are said to be {length} bytes from "
                f"{offset} on; is the file complete?"
            )
        return memoryview(content)[offset : offset + length]

    def _file(self, location: str, whose: str) -> Bytes:
        if location in self._open_files:
            self._open_files.move_to_end(location)
            return self._open_files[location]
        try:
            content = _map(_inside(self._folder, location, whose), whose)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ModelError(f"{whose} cannot be read: {reason}") from None
        self._open_files[location] = content
        if len(self._open_files) > KEPT:
            self._open_files.popitem(last=False)
        return content


def _inside(folder: Path, location: str, whose: str) -> Path:
    """The file itself, links followed, if it is inside `folder`."""
    windows = PureWindowsPath(location)  # which splits at both kinds of slash
    if not location or windows.drive or windows.root or ".." in windows.parts:
        raise ModelError(f"{whose} is refused: it must be a path below the model's folder, without '..'")
    folder = Path(os.path.realpath(folder))
    path = Path(os.path.realpath(folder / location))
    if not path.is_relative_to(folder):
        raise ModelError(f"{whose} is refused: it is a link that leaves the model's folder")
    if not path.exists():
        raise ModelError(
            f"{whose} is missing: it belongs beside the model, under the name that it was saved with; copy "
            "or download it too, or export the model again in one file"
        )
    return path


def _map(path: Path, whose: str) -> Bytes:
    # Not to follow a link that was put there since, not to wait for a pipe's writer.
    extra = [getattr(os, flag, 0) for flag in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY")]
    handle = os.open(path, os.O_RDONLY | sum(extra))
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise ModelError(f"{whose} is refused: it is not a regular file")
        if status.st_nlink > 1:
            raise ModelError(
                f"{whose} is refused: it has hard links, so it could be any file; put a copy in its place"
            )
        if status.st_size < MAP_FROM:
            with open(handle, "rb", closefd=False) as file:
                return file.read()
        return memoryview(mmap(handle, 0, access=ACCESS_READ))
    finally:
        os.close(handle)


def _number(text: str, what: str, whose: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ModelError(f"{whose}: the {what} {text!r} is not a number of bytes")
    return int(text)
