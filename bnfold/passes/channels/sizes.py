"""Numbers that depend on how many channels there are: shapes that are read, and indices on an axis."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from bnfold.fold.graph import Array, Graph, Tensor
from bnfold.onnx_graph.ops.facts import integers
from bnfold.onnx_graph.ops.table import record_of
from bnfold.onnx_graph.site import Scope, Site

__all__ = ["cut_size", "reads_of_sizes", "slice_bounds", "taken"]


def reads_of_sizes(graph: Graph) -> Iterator[tuple[Tensor, Callable[[int], bool]]]:
    """Each tensor whose shape a node reads, and whether that uses the size of an axis."""
    scopes: list[Scope] = graph.nodes[0].source.scope.model.scopes if graph.nodes else []
    for scope in scopes:
        for site in scope.sites:
            if site.op == "CastLike":  # which reads the type only
                continue
            for slot in record_of(site.op).unseen:
                value = site.values[slot] if slot < len(site.values) else None
                if value is not None and value.tensor is not None:
                    yield value.tensor, _axes_of_shape(site, value.tensor.rank)


def _axes_of_shape(site: Site, rank: int) -> Callable[[int], bool]:
    """Shape, of which often only some entries are taken."""
    output = site.outputs[0] if site.outputs else None
    if site.op != "Shape" or output is None or output.is_output:
        return lambda axis: True
    entries = list(range(rank))[site.attr("start", 0) : site.attr("end", rank)]
    used: set[int] = set()
    for reader, slot in output.uses:
        if not reader.alive or reader.values[slot] is not output:
            continue
        part = taken(reader, 1, 0, len(entries)) if slot == 0 and reader.op in ("Gather", "Slice") else None
        if part is None:
            return lambda axis: True
        used.update(entries[index] for index in part)
    return lambda axis: axis in used


def taken(site: Site, rank: int, axis: int, size: int) -> list[int] | None:
    """The entries of an axis that a Slice or a Gather takes; None if they are not known, or not in a row."""
    try:
        return _gathered(site, rank, axis, size) if site.op == "Gather" else _sliced(site, rank, axis, size)
    except (IndexError, ValueError):
        return None


def _gathered(site: Site, rank: int, axis: int, size: int) -> list[int] | None:
    along = int(site.attr("axis", 0)) % rank
    if along != axis:
        return list(range(size)) if site.rank(1) in (0, 1) or along > axis else None
    value = site.value(1)
    if value is None or value.ndim > 1:
        return None
    indices = [int(index) for index in value.reshape(-1)]
    return [index % size for index in indices] if all(-size <= index < size for index in indices) else None


def _sliced(site: Site, rank: int, axis: int, size: int) -> list[int] | None:
    bounds = slice_bounds(site, rank, axis)
    if bounds is None:
        return None
    entry, starts, ends = bounds
    return list(range(size))[starts[entry] : ends[entry]] if entry is not None else list(range(size))


def slice_bounds(site: Site, rank: int, axis: int) -> tuple[int | None, list[int], list[int]] | None:
    """Which entry of starts and ends is about this axis (None: none is), and both lists; None: not known."""
    if any(site.has(slot) and site.value(slot) is None for slot in (1, 2, 3, 4)):
        return None
    starts, ends = (integers(site, name, slot) for name, slot in (("starts", 1), ("ends", 2)))
    steps, axes = integers(site, "steps", 4), integers(site, "axes", 3)
    if starts is None or ends is None:
        return None
    axes = tuple(range(len(starts))) if axes is None else tuple(other % rank for other in axes)
    entries = [entry for entry, other in enumerate(axes) if other == axis]
    if len(entries) > 1 or (entries and steps is not None and steps[entries[0]] != 1):
        return None
    return (entries[0] if entries else None), list(starts), list(ends)


def cut_size(keep: Array, start: int, count: int) -> tuple[int, int]:
    """Where a run of so many entries begins, and how many are left of it, when only some are kept."""
    first = int((keep < start).sum())
    return first, int((keep < start + count).sum()) - first
