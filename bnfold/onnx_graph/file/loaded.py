"""A model from a file: its structure parsed, its weights mapped and read only when they are asked for."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from mmap import ACCESS_READ, mmap
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, EncodeError
from onnx import TensorProto

from bnfold.errors import ModelError, UsageError
from bnfold.onnx_graph.file import tensors as data
from bnfold.onnx_graph.file import wire
from bnfold.onnx_graph.file.external import DataFiles, is_external
from bnfold.onnx_graph.file.tensors import Array, Bytes

# protobuf's limit for one message.
LARGEST = (1 << 31) - 1


class Loaded:
    """A model being worked on.

    `proto` is its skeleton, ours to edit: complete but for the `raw_data` of large tensors, which is a token.
    (A tensor may be copied or moved inside the model with its token.) `path`: the file it came from, if any.
    `is_external`: whether that kept tensors in data files.
    """

    def __init__(self, source: wire.Readable, path: Path | None) -> None:
        """From a serialized model. Raises ModelError if it is none, in words that go on from "FILE: "."""
        self.path = path
        self._source = source
        self._skeleton, self._payloads = wire.cut(source)
        self.proto = _parse(self._skeleton)
        self._touched = False
        self.inode: tuple[int, int] | None = None  # of the file that is mapped, whatever is at `path` by now
        # A file with external data has this key somewhere; searching is faster than asking every tensor.
        self.is_external = b"location" in self._skeleton and any(map(is_external, data.tensors(self.proto)))
        self._files = None if path is None else DataFiles(path)
        self.holds: object = None  # what has to live as long, such as the owner of the folder of its files

    @property
    def edited(self) -> bool:
        """Whether `proto` differs from what was loaded."""
        if self._touched:
            return True
        now = _serialized(self.proto)
        # A file's own bytes may be in another order than protobuf's, or have a longer form.
        return now != self._skeleton and now != _parse(self._skeleton).SerializeToString()

    def array(self, tensor: TensorProto) -> Array:
        """The numbers of one of the model's tensors, read-only; if they lie in a file, mapped and not read.

        Types that numpy lacks are ml_dtypes' (bfloat16, float8, int4, ...); strings are objects.

        Raises:
            ModelError: sizes disagree, or the data file is not allowed or not there; it names the tensor.
        """
        try:
            raw = self.raw(tensor)
            if raw is None:
                return data.decode_fields(tensor)
            return data.decode(tensor.data_type, tensor.dims[:], raw)
        except ValueError as error:
            raise ModelError(f"{self.where}tensor {tensor.name!r}: {error}") from None

    def set_array(self, tensor: TensorProto, array: Array) -> None:
        """Give a tensor of the model other numbers, shape and type; name, documentation and metadata stay.

        A large contiguous array is kept, not copied: leave it as it is from now on.

        Raises:
            UsageError: ONNX has no such element type.
        """
        self._touched, self._skeleton = True, b""  # which is for comparison only
        try:
            code, raw = data.encode(array)
        except ValueError as error:
            raise UsageError(f"tensor {tensor.name!r}: {error}") from None
        if raw is None:
            data.put_strings(tensor, array)
        else:
            token = self._payloads.add(raw) if len(raw) >= wire.CUT_FROM else bytes(raw)
            data.put(tensor, code, array.shape, token)

    def copy(self) -> Loaded:
        """Another model to edit. Weights are shared until they are replaced."""
        other = Loaded.__new__(Loaded)
        other.__dict__.update(self.__dict__)
        other.proto = onnx.ModelProto()
        other.proto.CopyFrom(self.proto)
        other._payloads = self._payloads.copy()
        return other

    def to_proto(self) -> onnx.ModelProto:
        """The whole model in memory, data files included.

        Raises:
            ModelError: a data file is not allowed or not there.
        """
        if not self.is_external and not self.edited:
            return _parse(self._source[:])
        model = onnx.ModelProto()
        model.CopyFrom(self.proto)
        for tensor in data.tensors(model):
            raw = self.raw(tensor)
            if is_external(tensor) and raw is not None:
                data.put(tensor, tensor.data_type, tuple(tensor.dims), bytes(raw))
            elif isinstance(raw, memoryview):
                tensor.raw_data = bytes(raw)
        return model

    def chunks(self) -> Iterator[Bytes]:
        """The serialized model in pieces: the bytes that were loaded if nothing was edited. Data files stay.

        Raises:
            ModelError: the skeleton alone is too large for protobuf.
        """
        if self.edited:
            yield from self.serialized(self.proto)
        else:
            yield memoryview(self._source)

    def inlined(self) -> list[Bytes]:
        """`chunks` with the content of data files inside the model.

        Raises:
            ModelError: as `array`.
        """
        if not self.is_external:
            return list(self.chunks())
        proto, payloads = onnx.ModelProto(), self._payloads.copy()
        proto.CopyFrom(self.proto)
        for tensor in filter(is_external, data.tensors(proto)):
            raw = self.raw(tensor)
            assert raw is not None
            data.put(tensor, tensor.data_type, tuple(tensor.dims), payloads.add(raw))
        return self.serialized(proto, payloads)

    def message(self) -> bytes | None:
        """`inlined` as one piece; None where that is too large for one protobuf message."""
        pieces = self.inlined()
        return b"".join(pieces) if sum(map(len, pieces)) <= LARGEST else None

    def serialized(self, proto: onnx.ModelProto, payloads: wire.Payloads | None = None) -> list[Bytes]:
        """Another skeleton with tokens of this model, serialized with what they stand for."""
        try:
            return wire.splice(_serialized(proto), payloads or self._payloads)
        except ValueError as error:
            raise ModelError(f"{self.where}{error}") from None

    def raw(self, tensor: TensorProto) -> Bytes | None:
        """The bytes of a tensor in raw_data's encoding, wherever they are; None for other encodings.

        Raises:
            ModelError: as `array`, but for sizes.
        """
        if is_external(tensor):
            if self._files is None:
                raise ModelError(
                    f"tensor {tensor.name!r} is in another file, but the model came without a path"
                )
            return self._files.read(tensor)
        raw = tensor.raw_data
        if not raw:
            return raw if tensor.HasField("raw_data") else None
        payload = self._payloads.get(raw)
        return raw if payload is None else payload

    @property
    def where(self) -> str:
        """How a message about the model begins."""
        return "" if self.path is None else f"{self.path}: "


def load(source: str | Path | onnx.ModelProto) -> Loaded:
    """Open a model. A file is mapped: while the model is in use, it may be replaced but not written to.

    Raises:
        ModelError: it is not there, not an ONNX model, or empty.
        UsageError: `source` is neither a path nor a ModelProto.
    """
    if isinstance(source, onnx.ModelProto):
        try:
            loaded = Loaded(_serialized(source), None)
        except ModelError as error:
            raise ModelError(f"the model: {error}") from None
        if loaded.is_external:
            name = next(t.name for t in data.tensors(loaded.proto) if is_external(t))
            raise ModelError(
                f"the model keeps tensor {name!r} in another file, which only a path leads to: pass its path"
            )
        return loaded
    if not isinstance(source, (str, os.PathLike)):
        raise UsageError(f"a model is a path or an onnx.ModelProto, not {_told(source)}")
    path = Path(source)
    content, inode = _mapped(path)
    try:
        loaded = Loaded(content, path)
        loaded.inode = inode
        return loaded
    except ModelError as error:
        from bnfold.onnx_graph.file.kinds import HEAD, kind_of  # nobody else needs it

        raise ModelError(f"{path}: {kind_of(path, content[:HEAD]) or error}") from None


_INSTEAD = {  # by the name of a class among the bases of what was given
    "Module": "bnfold.fold_module folds it, and bnfold.export makes a file of it",
    "ExportedProgram": "bnfold.fold_program folds it",
    "ONNXProgram": "pass its model_proto",
    "GraphProto": "pass the onnx.ModelProto that holds it",
    "InferenceSession": "pass the path that it was made of",
    "bytes": "onnx.load_model_from_string makes an onnx.ModelProto of them",
}


def _told(source: object) -> str:
    """The kind of what is no model, with what serves in its place."""
    names = [kind.__name__ for kind in type(source).__mro__]
    instead = next((f": {words}" for name, words in _INSTEAD.items() if name in names), "")
    return names[0] + instead


def _mapped(path: Path) -> tuple[mmap, tuple[int, int]]:
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ModelError(f"{path}: not a file that a model could be in")
            if status.st_size == 0:
                raise ModelError(f"{path}: the file is empty")
            return mmap(file.fileno(), 0, access=ACCESS_READ), (status.st_dev, status.st_ino)
    except IsADirectoryError:
        raise ModelError(f"{path}: a folder; name the model file in it") from None
    except FileNotFoundError:
        raise ModelError(f"{path}: there is no such file") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # not to wait for a pipe's writer


def _parse(content: bytes) -> onnx.ModelProto:
    if len(content) > LARGEST:
        raise ModelError("too large even without its weights (protobuf ends at 2 GiB)")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError:
        raise ModelError("not an ONNX model, or damaged (no protobuf message); is it complete?") from None
    if not model.HasField("graph"):
        raise ModelError("not an ONNX model: there is no graph in it")
    if not model.graph.node and not model.graph.output:
        raise ModelError("the model's graph is empty")
    return model


def _serialized(model: onnx.ModelProto) -> bytes:
    try:
        content: bytes = model.SerializeToString()
        return content
    except (EncodeError, ValueError):
        raise ModelError(
            "too large for one protobuf message (2 GiB); save it with external data and pass its path"
        ) from None
