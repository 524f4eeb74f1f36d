"""Memory in which blocks of a cooperative launch exchange sums, and words by which they wait for each other.

A word is zero, or as the last launch that used it left it, which is as good. So launches need no memset, as
long as no two of them that may run at one time share a word:

- Launches in eager mode, and of what torch.compile makes, share those of their stream, where they follow each
  other.
- A launch that is captured into a CUDA graph has its own for ever: the graph may be replayed at any time, on
  any stream, beside other graphs. Nobody tells when a graph is gone, so they are not used again.

So it is with the memory of sums, which nobody has to zero; but a graph's is torch's, of its pool.

Words are slices of slabs that are zeroed when they are made, and none is made while a stream is being
captured. Nothing that is kept is memory of torch's allocator: what that gives may be of a graph's pool, where
nothing may be kept.
"""

from __future__ import annotations

import threading
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from bnfold.kernels.compile import KernelError
from bnfold.kernels.device import zeroed

__all__ = ["Mailbox", "Pointer", "Slabs", "capturing", "mailbox_of"]

SLAB = 2**18  # words; the next one is made when half of them are given
MOST = 16  # slabs of a device: for 13,000 captured launches at least, after which each replay zeroes its own
LINE = 32  # words; a slice begins at a multiple
OF_STREAM = 1024  # words of a stream at least, so that they rarely have to be replaced
SUMS = 2**16  # bytes of a stream's sums at least; they double until they are enough


class Pointer(Protocol):
    """A place in a device's memory."""

    def data_ptr(self) -> int: ...


class Address:
    """One that the driver gave."""

    def __init__(self, address: int) -> None:
        self._address = address

    def data_ptr(self) -> int:
        return self._address


class Mailbox(NamedTuple):
    """What the launches of a stream share: `length` words, and `size` bytes for sums."""

    words: Pointer
    length: int
    sums: Pointer | None
    size: int


class Slabs:
    """The words of one device, and what its streams keep."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.streams: dict[int, Mailbox] = {}
        self.made = 0
        self.full = False  # there is no memory for more sums
        self._slab: int | Tensor = 0
        self._used = SLAB
        self._lock = threading.Lock()

    def of_stream(self, stream: int, count: int, size: int = 0) -> Mailbox | None:
        """That of a stream that is not being captured; None: the device has no memory for its words.

        Where the device has none for its sums, there are fewer than `size` bytes.
        """
        found = self.streams.get(stream)
        if found is None or found.length < count or self._low or (found.size < size and not self.full):
            with self._lock:
                if self._low:
                    self._refill()
                found = self._larger(self.streams.get(stream), count, size)
                if found is not None:
                    self.streams[stream] = found
        return found

    def _larger(self, found: Mailbox | None, count: int, size: int) -> Mailbox | None:
        """As `found`, with so many words and bytes at least. What it had is not freed: it is in use."""
        if found is None or found.length < count:
            count = max(count, OF_STREAM)
            words = self._slice(count)
            if words is None:
                return None
            sums = (None, 0) if found is None else (found.sums, found.size)
            found = Mailbox(words, count, *sums)
        if found.size < size and not self.full:
            size = max(SUMS, 2 ** (size - 1).bit_length())
            try:
                found = found._replace(sums=_placed(_zeroed(self.device, size // 4)), size=size)
            except KernelError:
                self.full = True
        return found

    def captured(self, count: int) -> Pointer | None:
        """Those of a launch that is being captured; None: there are none left."""
        with self._lock:
            return self._slice(count)

    def _slice(self, count: int) -> Pointer | None:
        begin = self._used
        if begin + count > SLAB:
            return None
        self._used = begin + -(-count // LINE) * LINE
        if isinstance(self._slab, Tensor):
            return self._slab[begin : begin + count]
        return Address(self._slab + 4 * begin)

    @property
    def _low(self) -> bool:
        """Whether the next slab is to be made."""
        return self._used > SLAB // 2 and self.made < MOST

    def _refill(self) -> None:
        try:
            self._slab, self._used = _zeroed(self.device, SLAB), 0
            self.made += 1
        except KernelError:
            self.made = MOST


_SLABS: dict[torch.device, Slabs] = {}


def mailbox_of(x: Tensor, size: int, count: int, stream: int) -> tuple[Pointer, Pointer]:
    """Memory for one launch on the stream that is current for x, whose address is given.

    Args:
        x: any tensor of the device.
        size: bytes for sums, at least 1.
        count: words.
        stream: its address.
    """
    slabs = _SLABS.get(x.device)
    if slabs is None:
        slabs = _SLABS.setdefault(x.device, Slabs(x.device))
    sums: Pointer | None = None
    words: Pointer | None = None
    if capturing(x):
        words = slabs.captured(count)
    elif (kept := slabs.of_stream(stream, count, size)) is not None:
        words, sums = kept.words, kept.sums if kept.size >= size else None
    return (
        x.new_empty(size, dtype=torch.uint8) if sums is None else sums,
        x.new_zeros(count, dtype=torch.int32) if words is None else words,
    )


def capturing(x: Tensor) -> bool:
    """Whether what is launched now becomes a part of a CUDA graph."""
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def _zeroed(device: torch.device, count: int) -> int | Tensor:
    """So many words."""
    if device.type == "cuda":
        return zeroed(device.index, count)
    return torch.zeros(count, dtype=torch.int32, device=device)


def _placed(memory: int | Tensor) -> Pointer:
    return Address(memory) if isinstance(memory, int) else memory
