"""Files that are no ONNX models, known by their first bytes; and what serves in place of folding them."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

__all__ = ["kind_of"]

HEAD = 512  # bytes that tell
EXPORT = (
    "; it has no graph, so export the network that it belongs to: bnfold export MODULE:FACTORY out.onnx "
    "--weights {path} --input 1,3,224,224"
)
AGAIN = "; export the network that it was made of: bnfold export MODULE:FACTORY out.onnx --input 1,3,224,224"
CONVERT = "; convert it to ONNX first, with {} (pip install {}), then bnfold fold"
ENGINE = (
    "; it cannot be read back: fold the ONNX file that it was built from, and build it again: "
    "bnfold fold model.onnx folded.onnx, then bnfold build folded.onnx {path}"
)


class _Kind(NamedTuple):
    """One kind of file. is_it: told its first bytes. words: what it is, and what to do; {path} is its path.
    """

    is_it: Callable[[bytes], object]
    words: str


def _begins(*magic: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(magic)


def _at_four(magic: bytes) -> Callable[[bytes], bool]:
    return lambda head: head[4:8] == magic


def _is_safetensors(head: bytes) -> bool:
    """A length of eight bytes, and as many of JSON."""
    return len(head) > 9 and head[8:9] == b"{" and 1 < int.from_bytes(head[:8], "little") < 1 << 32


_KINDS = (
    _Kind(
        _begins(b"version https://git-lfs"),
        "only a pointer to a model in Git LFS; fetch it with `git lfs pull`",
    ),
    _Kind(_is_safetensors, "a safetensors file of weights" + EXPORT),
    _Kind(lambda head: head[1:4] == b"trt", "a TensorRT engine" + ENGINE),
    _Kind(re.compile(rb"\x80[\x02-\x05]").match, "a pickle, such as a torch checkpoint" + EXPORT),
    _Kind(_at_four(b"TFL3"), "a TensorFlow Lite model" + CONVERT.format("tf2onnx", "tf2onnx")),
    _Kind(
        _at_four(b"ORTM"),
        "a model in onnxruntime's own format, which has no way back; fold the ONNX file first",
    ),
    _Kind(_begins(b"\x89HDF"), "an HDF5 file, such as a Keras model" + CONVERT.format("tf2onnx", "tf2onnx")),
    _Kind(_begins(b"GGUF"), "a GGUF file of weights, which has no graph; fold the ONNX file of the network"),
    _Kind(
        _begins(b"\x93NUMPY"), "an array of numpy, and no model; inputs are given by --input-data-path {path}"
    ),
    _Kind(_begins(b"\x1f\x8b"), "compressed by gzip; unpack it first: gunzip {path}"),
    _Kind(lambda head: head[257:262] == b"ustar", "a tar archive; unpack it first: tar xf {path}"),
    _Kind(
        re.compile(rb"\s*<(!doctype html|html)", re.IGNORECASE).match,
        "a web page, which a download leaves that needs a login or another address; download the model again",
    ),
    _Kind(
        re.compile(rb"\s*(<\?xml[^>]*\?>\s*)?<net\b").match,
        "a model of OpenVINO; fold the ONNX file that it was converted from, and convert it again",
    ),
)
_ARCHIVES = (  # by a name in it, as a pattern
    (r"(.*/)?code/.*\.py", "a TorchScript file" + AGAIN),
    (
        r"(.*/)?(archive_format|serialized_exported_program\.json|models/.*\.json)",
        "an exported torch program; fold it in Python: bnfold.fold_program(torch.export.load({path!r}))",
    ),
    (r"(.*/)?data\.pkl", "a torch checkpoint" + EXPORT),
    (r".*\.npy", "an archive of numpy's arrays, and no model; inputs are given by --input-data-path {path}"),
    (r"(.*\.)?weights\.h5", "a Keras model" + CONVERT.format("tf2onnx", "tf2onnx")),
    (r"Manifest\.json", "a Core ML package; fold the ONNX file that it was converted from"),
)


def kind_of(path: Path, head: bytes) -> str:
    """What a file is that could not be read as an ONNX model, and what to do; "" where that is not known.

    head: its first `HEAD` bytes.
    """
    if head.startswith(b"PK\x03\x04"):
        return _archive(path)
    if head.lstrip()[:1] in (b"{", b"[") and _is_json(path):
        return "a JSON file, not an ONNX model; name the .onnx file"
    words = next((kind.words for kind in _KINDS if kind.is_it(head)), "")
    return words.format(path=str(path))


def _archive(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile, NotImplementedError):
        return "a zip archive, or a torch checkpoint, that is damaged; fetch it again"
    for pattern, words in _ARCHIVES:
        if any(re.fullmatch(pattern, name) for name in names):
            return words.format(path=str(path))
    models = [name for name in names if name.endswith(".onnx")]
    return (
        f"a zip archive; unpack it, and name the model in it, such as {models[0] if models else 'model.onnx'}"
    )


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes()[: 1 << 20])
    except (OSError, ValueError):
        return False
    return True
