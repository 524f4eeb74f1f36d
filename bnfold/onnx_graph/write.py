"""From a plan's edits to the edited model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx

from bnfold.errors import UsageError
from bnfold.fold.edits import AddBias, Bypass, Edit, Operand, Rescale, Resum, Retype, SetValue, SetWindows
from bnfold.fold.graph import Array, Graph, Node
from bnfold.fold.roles import Linear
from bnfold.onnx_graph.file.loaded import Loaded
from bnfold.onnx_graph.file.wire import CUT_FROM
from bnfold.onnx_graph.model.new_nodes import append, emit, take_over
from bnfold.onnx_graph.model.scopes import without_gc
from bnfold.onnx_graph.model.surgery import Surgery
from bnfold.onnx_graph.requantize import rescaled, rescaled_blocks
from bnfold.onnx_graph.site import FLOATS, Site, Value, numpy_dtype

__all__ = ["apply"]

BIAS_SLOT = 2  # of Conv, ConvTranspose and Gemm
Change = tuple[Site, int, Array]  # a node, its input, and what it reads there from now on


def apply(
    loaded: Loaded,
    graph: Graph,
    edits: Sequence[Edit],
    finish: Callable[[Surgery], None] | None = None,
) -> None:
    """Edit a model in place.

    All that the edits do not name stays field for field as it is; what they leave unread is removed.

    Args:
        loaded: the model that `read` made `graph` of.
        graph: what the solver saw. It describes the model no longer afterwards.
        edits: those of one plan.
        finish: what else is to be done, before the file's lists are brought up to date.

    Raises:
        UsageError: a stored value would have to be duplicated, and the model was read with shared="error".
    """
    if not edits:
        return
    with without_gc():
        writer = _Writer(edits)
        assert writer.surgery.model.loaded is loaded, "the graph was read from another model"
        writer.apply(edits)
        if finish is not None:
            finish(writer.surgery)
        writer.surgery.finish()


class _Writer:
    def __init__(self, edits: Sequence[Edit]) -> None:
        self.surgery = Surgery(_site(edits[0].node).scope.model)
        self.changes: dict[Value, list[Change]] = {}
        self.biases: dict[Any, Value] = {}  # new ones, by the weight beside them and their bytes

    def apply(self, edits: Sequence[Edit]) -> None:
        scales: list[Rescale] = []
        rules: dict[type[Any], Callable[[Any], None]] = {
            SetValue: self.set_value,
            Bypass: self.bypass,
            AddBias: self.add_bias,
            Retype: self.retype,
            Rescale: scales.append,
            SetWindows: self.set_windows,
            Resum: self.resum,
        }
        for edit in edits:
            rules[type(edit)](edit)
        self.rescale(scales)
        # computed constants first: the nodes that compute them, and read stored ones, may go
        stored: list[tuple[Value, onnx.TensorProto, list[Change]]] = []
        for value, changes in self.changes.items():
            tensor = self.surgery.replaceable(value)
            if tensor is None:
                self.copy(value, changes)
            else:
                stored.append((value, tensor, changes))
        self.surgery.sweep()
        for value, tensor, changes in stored:
            if self.surgery.prune:
                changes = [change for change in changes if change[0].alive]
            if changes:
                self.replace(value, tensor, changes)

    def set_value(self, edit: SetValue) -> None:
        site, key = _site(edit.node), edit.key
        if isinstance(key, str):
            _set_attribute(site.node, key, float(np.asarray(edit.value).reshape(-1)[0]))
            return
        value = site.values[key] if key < len(site.values) else None
        array = edit.value
        if edit.old is None:
            array = _in_type(array, site, key)
        if value is None:
            self.give(site, key, array, f"{site.name}_{key}")
        else:
            self.changes.setdefault(value, []).append((site, key, array))

    def give(self, site: Site, slot: int, array: Array, stem: str) -> Value:
        """Store an input that was left out, under a name made of `stem`."""
        value = self.surgery.constant(stem, array, site)
        self.surgery.connect(site, slot, value)
        return value

    def replace(self, value: Value, tensor: onnx.TensorProto, changes: list[Change]) -> None:
        """In place if all readers get the same array; else a new constant for each array."""
        surgery, first, count = self.surgery, changes[0][2], len(changes)
        if value.count == count and (count == 1 or all(_equal(first, array) for _, _, array in changes)):
            surgery.replace(value, tensor, first)
            return
        if surgery.model.shared == "error":
            names = ", ".join(dict.fromkeys(site.name for site, _ in value.uses if site.alive))
            raise UsageError(
                f"the stored value {value.name!r} is shared by {names}, which need different ones "
                "after the fold; allow that (shared='duplicate'), or keep what needs it (shared='skip')"
            )
        self.copy(value, changes)

    def copy(self, value: Value, changes: list[Change]) -> None:
        """A new constant for each array."""
        surgery = self.surgery
        made: dict[Any, Value] = {}
        for site, slot, array in changes:
            key = _bits(array)
            if key not in made:
                made[key] = surgery.constant(f"{value.name}_bnfold", array, value)
            surgery.connect(site, slot, made[key])

    def bypass(self, edit: Bypass) -> None:
        self.surgery.bypass(_site(edit.node), edit.node.role.x)  # type: ignore[attr-defined]

    def retype(self, edit: Retype) -> None:
        site = _site(edit.node)
        site.node.op_type = site.op = edit.op

    def add_bias(self, edit: AddBias) -> None:
        node, array = edit.node, edit.value
        site, role = _site(node), node.role
        if not isinstance(role, Linear):  # Einsum with a weight of several axes
            self.addition(site, array)
            return
        if role.bias_slot is None:
            self.bias_of_product(node, role, site, array)
            return
        if site.op == "Gemm" and site.attr("beta", 1.0) != 1.0:
            _set_attribute(site.node, "beta", 1.0)
        weight = site.values[role.weight_slot]
        assert weight is not None
        shared = weight.count > 1
        key = (site.scope, weight, _bits(array)) if shared else None
        known = self.biases.get(key)
        if known is not None:  # the same layer, called again
            self.surgery.connect(site, BIAS_SLOT, known)
            return
        made = self.give(site, BIAS_SLOT, array, f"{site.node.name or weight.name}_bias")
        if shared and made.init is not None:  # in a function it is a node before this one reader
            self.biases[key] = made

    def bias_of_product(self, node: Node, role: Linear, site: Site, array: Array) -> None:
        """A plain matrix product becomes a Gemm; any other, and an Einsum, gets an Add behind it."""
        proto, rank = site.node, len(node.outputs[0].shape or ())
        plain = site.op == "MatMul" and rank == len(role.weight.shape) == 2
        if plain and role.weight_slot == 1 and site.opset >= 7:
            proto.op_type = site.op = "Gemm"
            self.give(site, BIAS_SLOT, array, f"{proto.name or node.outputs[0].name}_bias")
            return
        self.addition(site, array.reshape((-1,) + (1,) * (rank - 1 - role.out_axis)), role.out_axis)

    def addition(self, site: Site, array: Array, axis: int = 0) -> None:
        """An Add behind a product. axis: of the product, that the first one of the array lies along."""
        surgery, y = self.surgery, site.outputs[0]
        assert y is not None
        stem = site.node.name or y.name
        stated: dict[str, int] = {}
        if site.opset < 7:  # later, numpy's broadcasting
            array, stated = array.reshape(-1), {"broadcast": 1, "axis": axis}
        bias = surgery.constant(f"{stem}_bias", array, site)
        append(surgery, y, f"{y.name}_matmul", ("Add", f"{stem}_bias_add"), [bias], site, **stated)

    def set_windows(self, edit: SetWindows) -> None:
        """State windows and groups anew, in numbers."""
        windows = edit.windows
        stated = {
            "strides": windows.strides,
            "dilations": windows.dilations,
            "pads": (*windows.heads, *windows.tails),
            "kernel_shape": edit.taps,
            "group": edit.groups,
            "auto_pad": None,
        }
        self.surgery.restate(_site(edit.node), stated)

    def resum(self, edit: Resum) -> None:
        """Let one value, or the sum of several, be read instead of what a node gives."""
        surgery, site = self.surgery, _site(edit.node)
        surgery.prune = True  # a merged node may be read by nobody
        first, *others = map(_value, edit.operands)
        y = site.outputs[0]
        assert y is not None
        if not others:
            if first.shape != y.shape:  # of the first of two in a row: the description of its output is old
                first.shape = y.shape
                surgery.stale[first.scope].add(first.name)
            surgery.connect(site, 0, first)
            surgery.bypass(site, 0)
            return
        whole = first
        for value in others[:-1]:
            whole = emit(surgery, "Add", [whole, value], f"{y.name}_part", site)
        take_over(surgery, site, 0, ("", "Add"), [whole, others[-1]], site.node.name)
        surgery.kill(site)

    def rescale(self, edits: list[Rescale]) -> None:
        """New scales for what DequantizeLinear gives: once if all readers get the same, else for copies."""
        groups: dict[Value, list[Rescale]] = {}
        for edit in edits:
            assert isinstance(edit.key, int)
            value = _site(edit.node).values[edit.key]
            assert value is not None
            groups.setdefault(value, []).append(edit)
        for value, group in groups.items():
            whole = not value.is_output and value.count == len(group)
            if whole and all(_equal(group[0].factor, edit.factor) for edit in group[1:]):
                assert value.site is not None
                self.scale(value.site, group[0].factor)
                continue
            for edit in group:
                self.scale(self.copy_for(_site(edit.node), edit.key), edit.factor)  # type: ignore[arg-type]

    def copy_for(self, reader: Site, slot: int) -> Site:
        """A copy of the node that makes this input, for this reader alone."""
        value = reader.values[slot]
        assert value is not None
        assert value.site is not None
        source, surgery = value.site, self.surgery
        copy = surgery.value(f"{value.name}_bnfold", value.scope, value)
        copy.constant, copy.resolved = value.constant, True
        site = surgery.node(source.op, copy.name, source.values, [copy], source)
        site.node.attribute.extend(source.node.attribute)
        site.node.domain = source.node.domain
        surgery.connect(reader, slot, copy)
        if source.op == "Transpose":  # of a DequantizeLinear, which needs a copy as well
            self.copy_for(site, 0)
        return site

    def scale(self, site: Site, factor: Array) -> None:
        """Multiply what a DequantizeLinear, or a Transpose of one, gives."""
        if site.op == "Transpose":
            perm = site.attr("perm") or list(range(factor.ndim))[::-1]
            inner = site.producer(0)
            assert inner is not None
            self.scale(inner, np.transpose(factor, np.argsort(perm)))
            return
        stored, scale, zero = site.value(0), site.value(1), site.value(2) if site.has(2) else None
        assert stored is not None
        assert scale is not None
        axis = site.attr("axis", 1) % max(stored.ndim, 1)
        if site.attr("block_size", 0):
            (new, new_scale, new_zero), new_axis = rescaled_blocks(stored, scale, zero, factor), axis
        else:
            new, new_scale, new_zero, new_axis = rescaled(stored, scale, zero, axis, factor)
        if new_scale.size > 1 and site.attr("axis", 1) not in (new_axis, new_axis - stored.ndim):
            _set_attribute(site.node, "axis", new_axis)
        for slot, old, array in ((0, stored, new), (1, scale, new_scale), (2, zero, new_zero)):
            value = site.values[slot] if slot < len(site.values) else None
            if array is None or (old is not None and _equal(old, array)):
                continue
            if value is None:
                self.give(site, slot, array, f"{site.name}_zero_point")
            else:
                self.changes.setdefault(value, []).append((site, slot, array))


def _site(node: Node) -> Site:
    site: Site = node.source
    return site


def _value(operand: Operand) -> Value:
    node, slot = operand
    site = _site(node)
    value = site.values[slot] if slot >= 0 else site.outputs[-1 - slot]
    assert value is not None
    return value


def _bits(array: Array) -> tuple[Any, ...]:
    """What arrays of the same bits have in common."""
    data = array.tobytes()
    return array.shape, array.dtype, data if len(data) < CUT_FROM else hashlib.sha256(data).digest()


def _equal(a: Array, b: Array) -> bool:
    """The same bits."""
    return a is b or (a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes())


def _in_type(array: Array, site: Site, slot: int) -> Array:
    """A value that had no stored one before, in the type that the operator takes there."""
    if array.dtype.kind in "iu":
        return array
    dtype = site.dtype(slot) or site.dtype(0)
    return array.astype(numpy_dtype(dtype), copy=False) if dtype in FLOATS else array


def _set_attribute(node: onnx.NodeProto, name: str, value: Any) -> None:
    for attribute in node.attribute:
        if attribute.name == name:
            break
    else:
        kind = onnx.AttributeProto.INT if isinstance(value, int) else onnx.AttributeProto.FLOAT
        attribute = node.attribute.add(name=name, type=kind)
    if attribute.type == onnx.AttributeProto.INT:
        attribute.i = int(value)
    else:
        attribute.f = value
