"""SplitToSequence followed by SequenceAt, as torch exports a split: each SequenceAt is a slice."""

from __future__ import annotations

from bnfold.fold.moves import entries
from bnfold.fold.roles import Move
from bnfold.onnx_graph.site import Site

__all__ = ["is_only_indexed", "part_sizes", "slice_from"]


def is_only_indexed(site: Site) -> bool:
    """A SplitToSequence whose parts are all known, and whose sequence nothing but SequenceAt reads."""
    if site.op != "SplitToSequence" or part_sizes(site) is None:
        return False
    sequence = site.outputs[0] if site.outputs else None
    if sequence is None or sequence.is_output or sequence.scope.parent is not None:
        return False
    readers = [reader for reader, slot in sequence.uses if reader.values[slot] is sequence]
    return all(reader.op == "SequenceAt" and slice_from(reader) is not None for reader in readers)


def slice_from(site: Site) -> tuple[Site, Move] | None:
    """For a SequenceAt: the SplitToSequence behind it, and the slice of that node's input which it takes."""
    source = site.producer(0)
    index = site.value(1)
    sizes = part_sizes(source) if source is not None and source.op == "SplitToSequence" else None
    if source is None or index is None or sizes is None or source.scope is not site.scope:
        return None
    shape = source.shape(0) or ()
    axis = int(source.attr("axis", 0)) % len(shape)
    place = int(index.reshape(-1)[0])
    if not -len(sizes) <= place < len(sizes):
        return None
    place %= len(sizes)
    start = sum(sizes[:place])
    output = site.outputs[0]
    if output is not None and output.shape is None:
        output.shape = tuple(sizes[place] if i == axis else size for i, size in enumerate(shape))
        output.dtype = output.dtype or source.dtype(0)
    taken = tuple(range(start, start + sizes[place]))
    return source, Move(entries(axis, taken, sum(sizes), len(shape)))


def part_sizes(site: Site) -> tuple[int, ...] | None:
    """How long the parts of a SplitToSequence are, if that is known."""
    shape = site.shape(0)
    if not shape or not site.has(1):
        return None  # without sizes each part has one entry, and may lose its axis
    total = shape[int(site.attr("axis", 0)) % len(shape)]
    split = site.value(1)
    if split is None or not isinstance(total, int):
        return None
    if split.ndim == 0:
        size = int(split)
        return tuple(min(size, total - at) for at in range(0, total, size)) if size > 0 else None
    sizes = tuple(int(size) for size in split)
    return sizes if sum(sizes) == total and min(sizes, default=0) > 0 else None
