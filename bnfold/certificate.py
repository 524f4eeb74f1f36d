"""What a fold claims: where each of the original's tensors has its counterpart, and how the two are related.

It is a hint and no evidence: whoever checks it proves every claim, so a wrong certificate can only make a
proof fail. A tensor that it does not name is claimed to be what it was, under its own name.

A tensor is found by its scope and its name. The scope is "" for the graph, else a path: `NAME:K/` for the
K-th body of the node whose first output is NAME, behind the path of the scope that the node is in. Tensors
of model-local functions are not in it.

The file is numpy's npz with three arrays: `header`, UTF-8 JSON; `numbers`, float64; `channels`, int64. The
header:

    {"format": "bnfold certificate", "version": 1,
     "original": str, "folded": str,         SHA-256 of what the two models hold
     "premises": {name: [lowest, highest]},  what inputs keep to
     "frozen": [name],                       inputs that are none any more, and keep their stored values
     "rounds": int,                          how often changes were carried out, and numbers rounded
     "images": [[scope, name, counterpart or null, form, p, q, cut, scaled, moved]]}

`form` is "encode" (counterpart = p * tensor + q) or "decode" (tensor = p * counterpart + q). `p` and `q` are
numbers, or {"at": first place in `numbers`, "shape": [int]}. `cut` is null, or {"axis": int, "kept": [first
place, how many] in `channels`, "constants": [first place, how many] in `numbers`}: which channels are still
there, and what was constant in each of the others (NaN: nobody reads it). `scaled` and `moved`: in which
rounds (bits) p and q have become so.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from bnfold.errors import UsageError

__all__ = ["Certificate", "Cut", "Image", "Key", "digest", "read_certificate"]

Array: TypeAlias = np.ndarray[Any, Any]
Key: TypeAlias = "tuple[str, str]"  # scope, name

FORMAT, VERSION = "bnfold certificate", 1
MEMBERS = {"header.npy": np.uint8, "numbers.npy": np.float64, "channels.npy": np.int64}
LARGEST = 1 << 30  # bytes of all three, unpacked


@dataclass(frozen=True, eq=False)
class Cut:
    """Channels that are gone. kept: the places along `axis` that are still there, of the original's.

    constants: one number for each of the original's places; NaN where nobody reads what is gone.
    """

    axis: int
    kept: Array
    constants: Array


@dataclass(frozen=True, eq=False)
class Image:
    """Where a tensor's counterpart is, and how the two are related.

    t' = p*t + q, or if `decoded` t = p*t' + q. p and q broadcast against the tensor. scaled, moved: the
    bits of the rounds of changes in which p and q have become what they are.
    """

    name: str
    p: Array | float = 1.0
    q: Array | float = 0.0
    decoded: bool = False
    cut: Cut | None = None
    scaled: int = 0
    moved: int = 0

    @property
    def plain(self) -> bool:
        """Whether the counterpart is equal."""
        return self.cut is None and bool(np.all(np.asarray(self.p) == 1)) and not np.any(self.q)


@dataclass
class Certificate:
    """The claims of one fold; the fields are those of the file.

    images: None for a tensor without a counterpart.
    """

    images: dict[Key, Image | None] = field(default_factory=dict)
    premises: dict[str, tuple[Array, Array]] = field(default_factory=dict)
    frozen: tuple[str, ...] = ()
    rounds: int = 1
    original: str = ""
    folded: str = ""

    def to_bytes(self) -> bytes:
        """The file."""
        numbers, channels = _Numbers(np.float64), _Numbers(np.int64)
        images: list[Any] = []
        for (scope, name), image in self.images.items():
            if image is None:
                images.append([scope, name, None, "encode", 1.0, 0.0, None, 0, 0])
                continue
            cut = None
            if image.cut is not None:
                kept, constants = channels.add(image.cut.kept), numbers.add(image.cut.constants)
                cut = {"axis": image.cut.axis, "kept": kept, "constants": constants}
            form = "decode" if image.decoded else "encode"
            p, q = numbers.put(image.p), numbers.put(image.q)
            images.append([scope, name, image.name, form, p, q, cut, image.scaled, image.moved])
        header = {
            "format": FORMAT,
            "version": VERSION,
            "original": self.original,
            "folded": self.folded,
            "premises": {
                k: [numbers.put(low), numbers.put(high)] for k, (low, high) in self.premises.items()
            },
            "frozen": list(self.frozen),
            "rounds": self.rounds,
            "images": images,
        }
        text = np.frombuffer(json.dumps(header).encode(), np.uint8)
        file = io.BytesIO()
        np.savez_compressed(file, header=text, numbers=numbers.all(), channels=channels.all())
        return file.getvalue()


class _Numbers:
    """Many arrays in one."""

    def __init__(self, dtype: type[np.generic]) -> None:
        self.dtype, self.parts, self.size = dtype, list[Array](), 0

    def add(self, array: Array) -> list[int]:
        self.parts.append(np.asarray(array, self.dtype).reshape(-1))
        self.size += self.parts[-1].size
        return [self.size - self.parts[-1].size, self.parts[-1].size]

    def put(self, value: Any) -> Any:
        array = np.asarray(value, self.dtype)
        if array.ndim == 0 and math.isfinite(array.item()):
            return array.item()
        return {"at": self.add(array)[0], "shape": list(array.shape)}

    def all(self) -> Array:
        return np.concatenate(self.parts) if self.parts else np.zeros(0, self.dtype)


def read_certificate(path: str | Path) -> Certificate:
    """A certificate from its file. Nothing in it is run, and a large one is refused before it is unpacked.

    Raises:
        UsageError: there is no such file, or it is no certificate of a version that is known.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {info.filename: info.file_size for info in archive.infolist()}
            if set(sizes) != set(MEMBERS) or len(archive.infolist()) != len(MEMBERS):
                raise _Damaged("it is another archive")
            if sum(sizes.values()) > LARGEST:
                raise _Damaged(f"it holds more than {LARGEST >> 20} MiB")
            arrays = [_array(archive.read(name), name) for name in MEMBERS]
        return _parsed(*arrays)
    except FileNotFoundError:
        raise UsageError(f"{path}: there is no such file") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from None
    except _Damaged as error:
        raise UsageError(f"{path}: not a certificate of bnfold: {error}") from None
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, NotImplementedError, MemoryError) as error:
        raise UsageError(f"{path}: not a certificate of bnfold: {error}") from None
    except (KeyError, IndexError, TypeError, AttributeError, RecursionError, RuntimeError) as error:
        raise UsageError(f"{path}: the certificate is damaged ({type(error).__name__}: {error})") from None


class _Damaged(Exception):
    pass


def _array(content: bytes, name: str) -> Array:
    array: Array = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    if array.ndim != 1 or array.dtype != MEMBERS[name]:
        raise _Damaged(f"{name} is {array.dtype} of shape {array.shape}")
    return array


def _parsed(text: Array, numbers: Array, channels: Array) -> Certificate:
    header = json.loads(text.tobytes())
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise _Damaged("its header is another")
    if header["version"] != VERSION:
        raise _Damaged(f"it is of version {header['version']!r}, and version {VERSION} is read here")

    def part(of: Array, where: Any) -> Array:
        at, size = (int(n) for n in where)
        if at < 0 or size < 0 or at + size > of.size:
            raise _Damaged("a number lies outside of the file")
        return of[at : at + size]

    def value(stored: Any) -> Array | float:
        if isinstance(stored, dict):
            shape = tuple(int(n) for n in stored["shape"])
            if min(shape, default=1) < 0 or len(shape) > 64:
                raise _Damaged(f"an array of shape {shape}")
            return part(numbers, (stored["at"], math.prod(shape))).reshape(shape)
        return float(stored)

    frozen = tuple(str(name) for name in header["frozen"])
    certificate = Certificate(
        {}, {}, frozen, int(header["rounds"]), str(header["original"]), str(header["folded"])
    )
    for name, (low, high) in header["premises"].items():
        certificate.premises[name] = np.asarray(value(low)), np.asarray(value(high))
    for scope, name, counterpart, form, p, q, stated, scaled, moved in header["images"]:
        if not isinstance(scope, str) or not isinstance(name, str) or form not in ("encode", "decode"):
            raise _Damaged(f"a claim about {name!r} in the form {form!r}")
        cut = None
        if stated is not None:
            kept, constants = part(channels, stated["kept"]), part(numbers, stated["constants"])
            if kept.size and not (kept.min() >= 0 and kept.max() < constants.size):
                raise _Damaged(f"channels of {name!r} that it has not")
            cut = Cut(int(stated["axis"]), kept, constants)
        image = None
        if counterpart is not None:
            image = Image(
                str(counterpart), value(p), value(q), form == "decode", cut, int(scaled), int(moved)
            )
        certificate.images[scope, name] = image
    return certificate


def digest(pieces: Iterable[bytes | memoryview]) -> str:
    """The SHA-256 of what is made of these."""
    found = hashlib.sha256()
    for piece in pieces:
        found.update(piece)
    return found.hexdigest()
