"""Taking the weights out of a serialized model, and putting them back, without parsing it.

`cut` replaces the bytes of each large tensor by a short token. What is left, the skeleton, is a valid
ModelProto that is parsed, edited and serialized in a few milliseconds, whatever the model weighs; `splice`
puts the bytes back. Both walk the same few fields of the wire format, those that lead to a tensor, and copy
all others as they are.
"""

from __future__ import annotations

import itertools
import secrets
import struct
from array import array
from collections.abc import Callable, Sequence
from mmap import mmap
from typing import TypeAlias

Readable: TypeAlias = "bytes | mmap"  # slices of either are bytes
Piece: TypeAlias = "bytes | memoryview"
# Wire tag -> the table of the message under it; None where the tag's own bytes are the weights.
Table: TypeAlias = "dict[int, Table | None]"

# Bytes. Measured with 5,000 tensors of 9 KiB (49 MB): load, serialize and splice take 0.11 s and 27 MB of
# memory if they are cut out, 0.20 s and 158 MB if they are left in. Smaller ones are mostly shapes and axes,
# which readers want in the skeleton.
CUT_FROM = 1024
# protobuf's own limit. A deeper message is left for it to refuse.
DEEPEST = 100
_TOKEN = struct.Struct("<16sQ")  # the table's random number, and that of the part
TOKEN_SIZE = _TOKEN.size
# For what is added to a table: of the whole process, so that no two tables give one token two meanings.
_NUMBERS = itertools.count(1 << 48)
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_DAMAGE = (IndexError, ValueError)  # by a walk over bytes that a parser should judge


def _tag(field: int) -> int:
    return field << 3 | _BYTES


_TENSOR: Table = {_tag(9): None}  # raw_data
_SPARSE: Table = {_tag(1): _TENSOR, _tag(2): _TENSOR}  # values, indices
_ATTRIBUTE: Table = {_tag(5): _TENSOR, _tag(10): _TENSOR, _tag(22): _SPARSE, _tag(23): _SPARSE}
_NODE: Table = {_tag(5): _ATTRIBUTE}
_GRAPH: Table = {_tag(1): _NODE, _tag(5): _TENSOR, _tag(15): _SPARSE}
_ATTRIBUTE.update({_tag(6): _GRAPH, _tag(11): _GRAPH})
_FUNCTION: Table = {_tag(7): _NODE, _tag(11): _ATTRIBUTE}
_TRAINING: Table = {_tag(1): _GRAPH, _tag(2): _GRAPH}
_MODEL: Table = {_tag(7): _GRAPH, _tag(20): _TRAINING, _tag(25): _FUNCTION}


class Payloads:
    """Bytes that were cut out, by token.

    A token begins with a random number of this table: no model contains one by chance or by design.
    """

    def __init__(self, source: Readable = b"") -> None:
        """`source`: what parts will be cut from."""
        self.magic = secrets.token_bytes(16)
        self._source = memoryview(source)
        # Start and end of each part. An object for each would cost more: Python's garbage collector goes
        # through all objects again and again as they grow in number.
        self._parts = array("q")
        self._added: dict[int, memoryview] = {}

    def add_part(self, start: int, stop: int) -> bytes:
        """The token that stands for these bytes of the source from now on."""
        self._parts.extend((start, stop))
        return self._token(len(self._parts) // 2 - 1)

    def add(self, data: Piece) -> bytes:
        """The token that stands for `data` (which is kept, not copied) from now on."""
        number = next(_NUMBERS)
        self._added[number] = data if isinstance(data, memoryview) else memoryview(data)
        return self._token(number)

    def get(self, data: bytes) -> memoryview | None:
        """What a token stands for; None if `data` is no token of this table."""
        if len(data) != TOKEN_SIZE:
            return None
        magic, number = _TOKEN.unpack(data)
        if magic != self.magic:
            return None
        if 2 * number < len(self._parts):
            return self._source[self._parts[2 * number] : self._parts[2 * number + 1]]
        return self._added.get(number)

    def copy(self) -> Payloads:
        """A table in which the tokens so far mean the same; what is added to one is not in the other."""
        other = Payloads()
        other.magic, other._source, other._parts = self.magic, self._source, self._parts
        other._added = dict(self._added)
        return other

    def _token(self, number: int) -> bytes:
        return _TOKEN.pack(self.magic, number)


def cut(model: Readable, cut_from: int = CUT_FROM) -> tuple[bytes, Payloads]:
    """The skeleton of a serialized ModelProto: each `raw_data` of at least `cut_from` bytes is now a token.

    The payloads are views of `model`. Bytes that are no message, or have a form that only a parser should
    judge (groups, deep nesting), come back unchanged.
    """
    payloads = Payloads(model)
    try:
        return b"".join(_Walk(model, cut_from, payloads.add_part).run()), payloads
    except _DAMAGE:
        return model[:], Payloads()


def splice(skeleton: bytes, payloads: Payloads) -> list[Piece]:
    """The serialized model in pieces: `b"".join` of them undoes `cut`. The payloads are not copied.

    Raises:
        ValueError: a token is elsewhere than in the `raw_data` of a tensor.
    """
    tokens = []
    at = skeleton.find(payloads.magic)
    while at >= 0:
        tokens.append(at)
        at = skeleton.find(payloads.magic, at + TOKEN_SIZE)

    def replace(start: int, stop: int) -> memoryview | None:
        return payloads.get(skeleton[start:stop])

    walk = _Walk(skeleton, TOKEN_SIZE, replace, tokens)
    try:
        pieces = walk.run()
    except _DAMAGE:
        pieces = [skeleton]
    if walk.replaced != len(tokens):
        raise ValueError("the weights of a tensor were moved to where no weights belong")
    return pieces


class _Walk:
    """One pass over a message: `replace` sees each payload, and the lengths around what it replaces change.

    Only fields of at least `smallest` bytes are searched; with `offsets` (sorted) only those around one of
    them.
    """

    def __init__(
        self,
        data: Readable,
        smallest: int,
        replace: Callable[[int, int], Piece | None],
        offsets: Sequence[int] | None = None,
    ) -> None:
        self.data, self.smallest, self.replace, self.offsets = data, smallest, replace, offsets
        self.next = 0
        self.pieces: list[Piece] = []
        self.replaced = 0
        self._find_next()

    def run(self) -> list[Piece]:
        """The pieces of the rewritten message."""
        if self._message(0, len(self.data), _MODEL, DEEPEST) is None:
            self.pieces.append(self.data[:])
        return self.pieces

    def _message(self, at: int, end: int, table: Table, depth: int) -> int | None:
        """Append the pieces of the message in [at, end), give its new size. If nothing changes: None."""
        if depth == 0:
            raise ValueError
        data, smallest, pieces = self.data, self.smallest, self.pieces
        copied = start = at  # up to `copied` all is in `pieces`
        new_size = end - at
        while at < end:
            tag, head = data[at], at + 1
            if tag >= 0x80:
                tag, head = self._varint(at)
            kind = tag & 7
            if kind == _BYTES:
                size, at = data[head], head + 1
                if size >= 0x80:
                    more = data[at]
                    if more < 0x80:
                        size += (more - 1) << 7
                        at += 1
                    else:
                        size, at = self._varint(head)
                elif size < smallest:
                    at += size
                    continue
                stop = at + size
                if size >= smallest and self.next < stop and tag in table:
                    if stop > end:
                        raise ValueError
                    # The new size goes before what is yet to be found out.
                    mark = len(pieces)
                    pieces.append(b"")
                    inner = table[tag]
                    if inner is None:
                        found = self._payload(at, stop)
                    else:
                        found = self._message(at, stop, inner, depth - 1)
                    if found is None:
                        del pieces[mark:]
                    else:
                        header = _varint(found)
                        pieces[mark] = data[copied:head] + header
                        new_size += len(header) + found - (stop - head)
                        copied = stop
                at = stop
            elif kind == _VARINT:
                while data[head] >= 0x80:
                    head += 1
                at = head + 1
            elif kind == _FIXED32:
                at = head + 4
            elif kind == _FIXED64:
                at = head + 8
            else:
                raise ValueError
        if at != end:
            raise ValueError
        if copied == start:
            return None
        if copied < end:
            pieces.append(data[copied:end])
        return new_size

    def _payload(self, at: int, stop: int) -> int | None:
        new = self.replace(at, stop)
        if new is None:
            return None
        self.pieces.append(new)
        self.replaced += 1
        self._find_next()
        return len(new)

    def _find_next(self) -> None:
        if self.offsets is not None:
            self.next = self.offsets[self.replaced] if self.replaced < len(self.offsets) else len(self.data)

    def _varint(self, at: int) -> tuple[int, int]:
        """The number at `at`, and where it ends."""
        value = 0
        for shift in range(0, 70, 7):
            byte = self.data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at
        raise ValueError


def _varint(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    if value < 0x4000:
        return bytes((value & 0x7F | 0x80, value >> 7))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
