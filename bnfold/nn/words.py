"""Words of a device by which the blocks of a cooperative launch wait for each other.

A word is zero, or as the last launch that used it left it, which is as good. So launches need no memset, as
long as no two of them that may run at one time share a word:

- Launches in eager mode, and of what torch.compile makes, share those of their stream, where they follow each
  other.
- A launch that is captured into a CUDA graph has its own for ever: the graph may be replayed at any time, on
  any stream, beside other graphs. Nobody tells when a graph is gone, so they are not used again.

All are slices of slabs that are zeroed when they are made, and none is made while a stream is being captured.
No slab is memory of torch's allocator: what that gives may be of a graph's pool, where nothing may be kept.
"""

from __future__ import annotations

import threading
from typing import Protocol

import torch
from torch import Tensor

from bnfold.kernels.compile import KernelError
from bnfold.kernels.device import zeroed

__all__ = ["Pointer", "Slabs", "capturing", "words_of"]

SLAB = 2**18  # words; the next one is made when half of them are given
MOST = 16  # slabs of a device: for 13,000 captured launches at least, after which each replay zeroes its own
LINE = 32  # words; a slice begins at a multiple
OF_STREAM = 1024  # words of a stream at least, so that they rarely have to be replaced


class Pointer(Protocol):
    """A place in a device's memory."""

    def data_ptr(self) -> int: ...


class Address:
    """One that the driver gave."""

    def __init__(self, address: int) -> None:
        self._address = address

    def data_ptr(self) -> int:
        return self._address


class Slabs:
    """The words of one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.streams: dict[int, tuple[Pointer, int]] = {}
        self.made = 0
        self._slab: int | Tensor = 0
        self._used = SLAB
        self._lock = threading.Lock()

    def of_stream(self, stream: int, count: int) -> Pointer | None:
        """Those of a stream that is not being captured; None: the device has no memory for them."""
        found = self.streams.get(stream)
        if found is not None and found[1] >= count and not self._low:
            return found[0]
        with self._lock:
            if self._low:
                self._refill()
            if found is None or found[1] < count:
                count = max(count, OF_STREAM)
                words = self._slice(count)
                if words is None:
                    return None
                found = self.streams[stream] = (words, count)
        return found[0]

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
            self._slab, self._used = _zeroed(self.device), 0
            self.made += 1
        except KernelError:
            self.made = MOST


_SLABS: dict[torch.device, Slabs] = {}


def words_of(x: Tensor, count: int, stream: int) -> Pointer:
    """So many words for one launch on the stream that is current for x, whose address is given."""
    slabs = _SLABS.get(x.device)
    if slabs is None:
        slabs = _SLABS.setdefault(x.device, Slabs(x.device))
    found = slabs.captured(count) if capturing(x) else slabs.of_stream(stream, count)
    return x.new_zeros(count, dtype=torch.int32) if found is None else found


def capturing(x: Tensor) -> bool:
    """Whether what is launched now becomes a part of a CUDA graph."""
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def _zeroed(device: torch.device) -> int | Tensor:
    """A slab."""
    if device.type == "cuda":
        return zeroed(device.index, SLAB)
    return torch.zeros(SLAB, dtype=torch.int32, device=device)
