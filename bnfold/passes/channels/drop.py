"""Find the dead channels of a model, and take them out of it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx

from bnfold.fold.edits import AddBias, Edit, SetValue
from bnfold.fold.graph import Array, Graph, Node
from bnfold.fold.roles import Linear
from bnfold.onnx_graph.file.loaded import Loaded
from bnfold.onnx_graph.file.tensors import constants
from bnfold.onnx_graph.model.scopes import without_gc
from bnfold.onnx_graph.model.site import DTYPES, FLOATS, Value
from bnfold.onnx_graph.model.surgery import Surgery
from bnfold.onnx_graph.ops.interval import Bounds
from bnfold.onnx_graph.read import read
from bnfold.onnx_graph.run.input_ranges import Range
from bnfold.onnx_graph.write import apply
from bnfold.passes.channels.bounds import prove
from bnfold.passes.channels.choose import Choice, choose
from bnfold.passes.channels.classes import Reason
from bnfold.passes.channels.cut_layers import Cut, TooLarge
from bnfold.passes.channels.cuts import cut_of
from bnfold.passes.channels.grouping import group
from bnfold.passes.channels.kept import kept_constants
from bnfold.report.channels import CutLayer, Dropped

__all__ = ["drop_dead_channels"]


def drop_dead_channels(
    loaded: Loaded, ranges: Mapping[str, Range] | None = None, shared: str = "duplicate"
) -> Dropped:
    """Take out, in place, every channel that is proven to be constant or that nobody reads.

    Args:
        loaded: the model, folded before: a batch norm scale of zero is then a filter of zeros.
        ranges: of graph inputs, by name.
        shared: what to do with vectors whose users need different ones: "duplicate", "skip", "error".

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
            choice = choose(graph, groups, facts, stay)
            try:
                cuts = {node: cut_of(choice, node) for node in graph.nodes}
                break
            except TooLarge as large:
                role = large.node.role
                assert isinstance(role, Linear)
                tensor = large.node.inputs[role.x]
                assert tensor is not None
                moving = large.channels & (choice.constants(tensor) != 0)
                stay |= {int(s): Reason(large.text, large.node.name) for s in choice.sets[tensor][moving]}
        dropped = Dropped(list(_layers(choice, cuts)), kept_constants(graph, choice))
        before = _count(loaded)
        _write(loaded, graph, choice, cuts)
        dropped.parameters = before - _count(loaded)
        return dropped


def _layers(choice: Choice, cuts: dict[Node, Cut]) -> list[CutLayer]:
    found = []
    for node, cut in cuts.items():
        if not cut.edits and not cut.attributes:
            continue
        fewer = sum(_fewer(edit) for edit in cut.edits if edit.node is node)
        outputs: tuple[int, ...] = ()
        inputs: tuple[int, ...] = ()
        if isinstance(node.role, Linear):
            outputs = _places(choice.gone(node.outputs[0]))
            inputs = _places(choice.gone(node.at(node.role.x)))
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


def _places(gone: Array | None) -> tuple[int, ...]:
    return () if gone is None else tuple(np.flatnonzero(gone).tolist())


def _write(loaded: Loaded, graph: Graph, choice: Choice, cuts: dict[Node, Cut]) -> None:
    edits: list[Edit] = []
    done: set[tuple[Node, int | str]] = set()
    for cut in cuts.values():
        for edit in cut.edits:
            if isinstance(edit, SetValue):
                if (edit.node, edit.key) in done:  # a bias that took constants on the way is cut already
                    continue
                done.add((edit.node, edit.key))
            edits.append(edit)

    smaller: list[tuple[Value, int, int]] = []
    for node in cuts:
        for value, tensor in zip(node.source.outputs, node.outputs, strict=True):
            keep = choice.keep(tensor)
            if keep is not None and value is not None:
                smaller.append((value, choice.groups.channels[tensor].axis, len(keep)))

    def finish(surgery: Surgery) -> None:
        for node, cut in cuts.items():
            for name, entry in cut.attributes.items():
                _set(node.source.node, name, entry)
        for value, axis, size in smaller:
            _resize(value, axis, size)

    apply(loaded, graph, edits, finish)


def _set(node: onnx.NodeProto, name: str, value: int | list[int] | None) -> None:
    """Give a node an integer attribute, or take it away."""
    others = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend(others)
    if value is not None:
        node.attribute.append(onnx.helper.make_attribute(name, value))


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
