"""The windows of convolutions and pools along each spatial axis, and what they see beyond the edges."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from bnfold.errors import ModelError
from bnfold.fold.graph import Dim, Refused
from bnfold.fold.windows import Windows
from bnfold.onnx_graph.site import Site

__all__ = ["Grid", "Window", "counts", "windows"]


class Window(NamedTuple):
    """One spatial axis. `head` and `tail` are the padding; None: not known, but less than a window."""

    taps: int
    stride: int
    dilation: int
    size: Dim
    head: int | None
    tail: int | None
    ceil: bool = False

    @property
    def reach(self) -> int:
        """From the first tap to the last."""
        return (self.taps - 1) * self.dilation + 1

    @property
    def padded(self) -> bool:
        """A window may see padding."""
        return self.head != 0 or self.tail != 0

    @property
    def hangs_over(self) -> bool:
        """With `ceil_mode` the last window may end behind the padding."""
        if not self.ceil or self.stride == 1:
            return False
        if not isinstance(self.size, int) or self.head is None or self.tail is None:
            return True
        return (self.size + self.head + self.tail - self.reach) % self.stride != 0

    @property
    def may_be_empty(self) -> bool:
        """A window may see nothing but padding."""
        if self.head is None or self.tail is None:
            head, tail = (0, 0) if self.dilation == 1 else (1, 1)
        else:
            head, tail = self.head, self.tail
        if self.hangs_over:
            tail += self.stride - 1
        if head >= self.reach or tail >= self.reach:
            return True
        # the taps of a dilated window can lie on both sides of a small image
        small = not isinstance(self.size, int) or self.size < self.dilation
        return self.dilation > 1 and (head > 0 or tail > 0) and small


class Grid(NamedTuple):
    """The windows of a node, one for each spatial axis."""

    windows: tuple[Window, ...]
    padded: bool  # along any of them
    stated: Windows | None  # all of them as numbers; None where a size that is not known decides


def windows(site: Site, taps: tuple[int, ...], sizes: tuple[Dim, ...]) -> Grid:
    """The windows of a Conv or a pool with kernels of `taps`, over axes of these sizes."""
    return _windows(taps, sizes, _stated(site))


class _Stated(NamedTuple):
    """The attributes of a node; () for lists that are left out."""

    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    auto: str
    ceil: bool


def _stated(site: Site) -> _Stated:
    get = site.attributes.get
    strides, dilations, pads = get("strides") or (), get("dilations") or (), get("pads") or ()
    auto, ceil = str(get("auto_pad", "")) or "NOTSET", bool(get("ceil_mode"))
    return _Stated(tuple(strides), tuple(dilations), tuple(pads), auto, ceil)


@lru_cache(1024)  # nets repeat their layers
def _windows(taps: tuple[int, ...], sizes: tuple[Dim, ...], stated: _Stated) -> Grid:
    strides, dilations, pads, auto, ceil = stated
    count = len(taps)
    if len(sizes) != count:
        raise Refused(f"its kernel has {count} axes, and its input {len(sizes)} to match")
    strides, dilations, pads = strides or (1,) * count, dilations or (1,) * count, pads or (0,) * (2 * count)
    if not (len(strides) == len(dilations) == count and len(pads) == 2 * count):
        raise Refused("its strides, dilations or pads do not match its kernel")
    found = []
    for i, (tap, stride, dilation, size) in enumerate(zip(taps, strides, dilations, sizes, strict=True)):
        head: int | None
        tail: int | None
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            reach = (tap - 1) * dilation + 1
            head, tail = _same(auto, reach, stride, size if stride > 1 else reach)
        elif auto == "VALID":
            head = tail = 0
        else:
            head, tail = pads[i], pads[count + i]
        found.append(Window(tap, stride, dilation, size, head, tail, ceil))
    heads = tuple(window.head for window in found if window.head is not None)
    tails = tuple(window.tail for window in found if window.tail is not None)
    known = len(heads) == len(tails) == count and not ceil
    numbers = Windows(strides, dilations, heads, tails) if known else None
    return Grid(tuple(found), any(window.padded for window in found), numbers)


def counts(site: Site, sizes: tuple[Dim, ...], kernel: Iterable[Dim]) -> tuple[Dim, ...] | None:
    """How many windows there are along each axis, as far as that is certain.

    Raises:
        ModelError: a window is larger than what it moves over.
    """
    found = _counted(sizes, tuple(kernel), _stated(site))
    if found == ():
        raise ModelError(
            f"node {site.name!r} ({site.op}): its window is larger than its input, of sizes "
            f"{list(sizes)}; no runtime can run this model"
        )
    return found


@lru_cache(1024)  # nets repeat their layers
def _counted(sizes: tuple[Dim, ...], kernel: tuple[Dim, ...], stated: _Stated) -> tuple[Dim, ...] | None:
    """How many windows there are along each axis; () if one is larger than what it moves over."""
    strides, dilations, pads, auto, ceil = stated
    rank = len(sizes)
    result: list[Dim] = []
    for i, (size, taps) in enumerate(zip(sizes, kernel, strict=True)):
        stride = strides[i] if strides else 1
        if not isinstance(taps, int) or stride < 1:
            return None
        if auto not in ("NOTSET", "VALID"):
            result.append(-(-size // stride) if isinstance(size, int) else size if stride == 1 else None)
            continue
        padding = pads[i] + pads[i + rank] if pads and auto == "NOTSET" else 0
        extra = padding - (dilations[i] if dilations else 1) * (taps - 1) - 1
        if not isinstance(size, int):
            result.append(size if stride == 1 and extra == -1 else None)
            continue
        if size + extra < -1:
            return ()
        count = (size + extra) // stride + 1
        if ceil and (size + extra) % stride:
            # releases differ in whether one more window counts where it would see padding only
            begins = count * stride - (pads[i] if pads and auto == "NOTSET" else 0)
            result.append(None if begins >= size else count + 1)
        else:
            result.append(count)
    return tuple(result)


def _same(auto: str, reach: int, stride: int, size: Dim) -> tuple[int | None, int | None]:
    if reach == 1:
        return 0, 0
    if not isinstance(size, int):
        return None, None
    total = max((-(-size // stride) - 1) * stride + reach - size, 0)
    small, large = total // 2, total - total // 2
    return (small, large) if auto == "SAME_UPPER" else (large, small)
