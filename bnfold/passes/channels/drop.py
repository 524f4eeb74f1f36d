"""The pass as a whole: find the channels that leave, take them out of the model, report what stays and why.

Read it first: each step is a module of its own, in the order in which `drop_dead_channels` calls them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from bnfold import certificate
from bnfold.fold.absorb.store import OutOfRange
from bnfold.fold.claims import Claim, Claims
from bnfold.fold.edits import AddBias, Edit, SetValue
from bnfold.fold.graph import Array, Graph, Node, Role
from bnfold.fold.roles import Linear, Map, Product, Same, Sum
from bnfold.onnx_graph.file.loaded import Loaded
from bnfold.onnx_graph.file.tensors import constants
from bnfold.onnx_graph.model.scopes import without_gc
from bnfold.onnx_graph.model.surgery import Surgery
from bnfold.onnx_graph.ops.interval import Bounds
from bnfold.onnx_graph.read import read
from bnfold.onnx_graph.run.input_ranges import Range
from bnfold.onnx_graph.site import DTYPES, FLOATS, Value
from bnfold.onnx_graph.write import apply
from bnfold.passes.channels.bounds import prove
from bnfold.passes.channels.choose import PADDED, Choice, choose
from bnfold.passes.channels.cut_layers import Cut
from bnfold.passes.channels.cuts import cut_of
from bnfold.passes.channels.grouping import group
from bnfold.passes.channels.groups import Reason
from bnfold.report.channels import CutLayer, Dropped, KeptChannels

__all__ = ["drop_dead_channels"]

_JOINED = "joins it with what is not constant"
_WORDS: dict[type[Role], str] = {Map: "sees padding beside it", Product: _JOINED, Same: _JOINED, Sum: _JOINED}


def drop_dead_channels(
    loaded: Loaded,
    ranges: Mapping[str, Range] | None = None,
    shared: str = "duplicate",
    watch: Callable[[Graph, Claims], Callable[[], None]] | None = None,
) -> Dropped:
    """Take out, in place, every channel that is proven to be constant or that nobody reads.

    Args:
        loaded: the model, folded before: a batch norm scale of zero is then a filter of zeros.
        ranges: of graph inputs, by name.
        shared: what to do with vectors whose users need different ones: "duplicate", "skip", "error".
        watch: told what becomes of each tensor before it does, and asked afterwards.

    Returns:
        What left, and what is constant and had to stay.

    Raises:
        ModelError: the model is damaged.
        UsageError: a stored value would have to be duplicated, and `shared` is "error".
    """
    with without_gc():
        graph = read(loaded, shared)
        facts = prove(graph, {name: Bounds(*ends) for name, ends in (ranges or {}).items()})
        groups = group(graph)
        stay: dict[int, Reason] = {}
        while True:
            choice = choose(groups, facts, stay)
            try:
                cuts = {node: cut_of(choice, node) for node in graph.nodes}
                break
            except OutOfRange as error:  # the constants that would move into this bias stay
                role = error.node.role
                assert isinstance(role, Linear)
                tensor = error.node.at(role.x)
                moving = choice.leaving[choice.sets[tensor]] & (choice.constants(tensor) != 0)
                stay |= {int(s): Reason(error.reason, error.node.name) for s in choice.sets[tensor][moving]}
        dropped = Dropped(list(_layers(choice, cuts)), _kept_constants(graph, choice))
        before = _count(loaded)
        noted = None if watch is None else watch(graph, _claims(graph, choice))
        _write(loaded, graph, choice, cuts)
        if noted is not None:
            noted()
        dropped.parameters = before - _count(loaded)
        return dropped


def _claims(graph: Graph, choice: Choice) -> Claims:
    """What becomes of the tensors that lose channels. Of stored ones nothing is claimed."""
    claims = {}
    for tensor in graph.tensors:
        keep = choice.keep(tensor)
        if keep is not None and tensor.constant is None:
            axis = choice.groups.channels[tensor].axis
            claims[tensor] = Claim(tensor, cut=certificate.Cut(axis, keep, choice.constants(tensor)))
    return claims


def _layers(choice: Choice, cuts: dict[Node, Cut]) -> list[CutLayer]:
    found = []
    for node, cut in cuts.items():
        if not cut.edits and not cut.attributes:
            continue
        fewer = sum(_fewer(edit) for edit in cut.edits if edit.node is node)
        outputs: tuple[int, ...] = ()
        inputs: tuple[int, ...] = ()
        if isinstance(node.role, Linear):
            outputs = _indices(choice.gone(node.outputs[0]))
            inputs = _indices(choice.gone(node.at(node.role.x)))
        elif not fewer:
            continue  # a shape, or the bounds of a slice
        found.append(CutLayer(node.name, node.op, outputs, inputs, fewer, cut.multiplications, cut.moved))
    return found


def _fewer(edit: Edit) -> int:
    """How many floating point numbers less an edit leaves."""
    if isinstance(edit, SetValue):
        stored = edit.old is not None and edit.old.dtype in FLOATS
        return math.prod(edit.old.shape) - edit.value.size if stored and edit.old is not None else 0
    return -edit.value.size if isinstance(edit, AddBias) else 0


def _indices(gone: Array | None) -> tuple[int, ...]:
    return () if gone is None else tuple(np.flatnonzero(gone).tolist())


# What is constant and stays


def _kept_constants(graph: Graph, choice: Choice) -> list[KeptChannels]:
    """What is constant and stays all the same: which node makes it so, what keeps it, and why.

    One entry for each node and reason; a channel is in that of the node where it first is constant.
    """
    seen: set[int] = set()
    lost = _where_lost(graph, choice)
    found: list[KeptChannels] = []
    for node in graph.nodes:
        by_reason: dict[Reason, list[int]] = {}
        for channel, root in _constant_at(choice, node):
            reason = choice.reasons.get(root)
            if root in seen or reason is None:
                continue
            seen.add(root)
            if root in choice.live:
                reason = lost.get(root, reason)
            by_reason.setdefault(reason, []).append(channel)
        found += [KeptChannels(node.name, node.op, tuple(p), r.text, r.where) for r, p in by_reason.items()]
    return found


def _constant_at(choice: Choice, node: Node) -> list[tuple[int, int]]:
    """The indices and sets of the channels that are constant in the first output, and stay."""
    y = node.outputs[0] if node.outputs else None
    sets = None if y is None else choice.sets.get(y)
    if y is None or sets is None:
        return []
    found = np.flatnonzero(~np.isnan(choice.constants(y)) & ~choice.leaving[sets])
    return [(channel, int(sets[channel])) for channel in found.tolist()]


def _where_lost(graph: Graph, choice: Choice) -> dict[int, Reason]:
    """For each set the first node that reads it constant and gives something else on it."""
    lost: dict[int, Reason] = {}
    for node in graph.nodes:
        y = node.outputs[0] if node.outputs else None
        sets = None if y is None else choice.sets.get(y)
        if y is None or sets is None:
            continue
        live = np.isnan(choice.constants(y))
        for x in node.inputs:
            if x is None or x not in choice.sets or x.constant is not None:
                continue
            known = ~np.isnan(choice.constants(x))
            if isinstance(node.role, Linear) and node.role.groups > 1:  # a group is one set
                roots = set(choice.sets[x][known].tolist()).intersection(sets[live].tolist())
            else:
                alike = len(known) == len(live)  # else a part, or one of several
                roots = set(sets[known & live].tolist()) if alike else set()
            for root in roots:
                lost.setdefault(root, Reason(_words(node), node.name))
    return lost


def _words(node: Node) -> str:
    role = node.role
    if isinstance(role, Linear):
        if role.split[role.w_in] > 1:
            return "works in groups, and others of its group are not constant"
        return PADDED if role.padded else "does not keep it constant"
    return _WORDS.get(type(role), "does not keep it constant")


# The edits


def _write(loaded: Loaded, graph: Graph, choice: Choice, cuts: dict[Node, Cut]) -> None:
    edits: dict[tuple[Node, object], Edit] = {}
    for cut in cuts.values():
        for edit in cut.edits:  # a bias behind a MatMul that took constants is cut already
            edits.setdefault((edit.node, getattr(edit, "key", None)), edit)
    smaller: list[tuple[Value, int, int]] = []
    for node in cuts:
        for value, tensor in zip(node.source.outputs, node.outputs, strict=True):
            keep = choice.keep(tensor)
            if keep is not None and value is not None:
                smaller.append((value, choice.groups.channels[tensor].axis, len(keep)))

    def finish(surgery: Surgery) -> None:
        for node, cut in cuts.items():
            if cut.attributes:
                surgery.restate(node.source, cut.attributes)
        for value, axis, size in smaller:
            _resize(value, axis, size)

    apply(loaded, graph, list(edits.values()), finish)


def _resize(value: Value, axis: int, size: int) -> None:
    """Note the new size of a value where the file states the old one."""
    if value.shape is not None:
        value.shape = (*value.shape[:axis], size, *value.shape[axis + 1 :])
    for info in value.scope.proto.value_info:
        if info.name == value.name and axis < len(info.type.tensor_type.shape.dim):
            info.type.tensor_type.shape.dim[axis].dim_value = size


def _count(loaded: Loaded) -> int:
    """The floating point numbers that a model stores."""
    return sum(
        math.prod(tensor.dims)
        for tensor, constant in constants(loaded.proto)
        if constant and DTYPES.get(tensor.data_type) in FLOATS
    )
