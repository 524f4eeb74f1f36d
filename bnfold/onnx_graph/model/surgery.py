"""Changes to a model that keep every name right: bypass, rename, replace a constant, add and remove nodes.

The lists of the file are not touched until `finish`: until then `Site` and `Value` say what is still there.
Everything that no call names stays where it is, field for field.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import onnx

from bnfold.fold.graph import Array
from bnfold.onnx_graph.file.wire import CUT_FROM
from bnfold.onnx_graph.model.constants import stored_in
from bnfold.onnx_graph.site import CODES, Model, Scope, Site, Value

__all__ = ["Surgery", "restate"]

_FLOAT32 = np.dtype("<f4")


class _List:
    """What happens to one list of a graph: entries that go, and new ones with the entry that they follow."""

    def __init__(self) -> None:
        self.gone: dict[int, Any] = {}  # by id(); the entries are held, so that no other object gets their id
        self.added: list[tuple[Any, Any, float]] = []  # entry, anchor, and a step behind (or before) it

    def finish(self, field: Any) -> None:
        """Bring the list into its new order: sorting moves pointers, where extending copies."""
        entries, gone = field[:], self.gone
        if any(anchor is not None for _, anchor, _ in self.added):
            rank: dict[int, float] = dict(zip(map(id, entries), range(len(entries)), strict=True))
            for entry, anchor, step in self.added:
                rank[id(entry)] = rank.get(id(anchor), len(entries)) + step
            field.sort(key=lambda entry: rank[id(entry)])
        if gone:
            field.sort(key=lambda entry: id(entry) in gone)  # stable
            del field[len(entries) - len(gone) :]


class Surgery:
    """One set of changes to a model that was read.

    prune: whether any node goes that the changes leave without readers, and not only what computes constants.
    """

    def __init__(self, model: Model, prune: bool = False) -> None:
        self.model = model
        self.prune = prune
        self.nodes: dict[Scope, _List] = defaultdict(_List)
        self.initializers: dict[Scope, _List] = defaultdict(_List)
        self.stale: dict[Scope, set[str]] = defaultdict(set)  # names whose value_info is wrong now
        self.renewed: dict[Scope, set[str]] = defaultdict(set)  # names whose stored value is another one now
        self.orphans: list[Value] = []
        self.taken: set[str] = set()
        self.numbers: dict[str, int] = {}  # the last one that a stem was given
        self.noted = {scope: _noted(scope) for scope in model.scopes}
        self.listed_inputs = model.loaded.proto.ir_version < 4  # initializers are graph inputs as well

    # who reads what

    def uses(self, value: Value) -> Iterator[tuple[Site, int]]:
        """The reads that still happen."""
        return ((site, slot) for site, slot in value.uses if site.alive and site.values[slot] is value)

    def connect(self, site: Site, slot: int, value: Value | None) -> None:
        """Let an input read another value; the proto follows."""
        names, values = site.node.input, site.values
        while len(values) < slot:
            values.append(None)
            names.append("")
        name, old = "" if value is None else value.name, None
        if slot < len(values):
            old, values[slot] = values[slot], value
            names[slot] = name
        else:
            values.append(value)
            names.append(name)
        if value is not None:
            value.uses.append((site, slot))
            value.count += 1
        if old is not None:
            self._release(old)

    def _release(self, value: Value) -> None:
        value.count -= 1
        if value.count <= 0:
            self.orphans.append(value)

    def kill(self, site: Site) -> None:
        """Remove a node. Its outputs must have no readers left."""
        site.alive = False
        scope = site.scope
        self.nodes[scope].gone[id(site.node)] = site.node
        for value in site.values:
            if value is not None:
                self._release(value)
        for value in site.outputs:
            if value is not None and scope.values.get(value.name) is value:
                self.stale[scope].add(value.name)
                del scope.values[value.name]

    def bypass(self, site: Site, slot: int) -> None:
        """Let the readers of a node's output read its input instead, and remove it.

        A name that must stay (a graph output's, one that a body captures) is taken over by the input. Where
        the input too has such a name, the node becomes an Identity.
        """
        x, y = site.values[slot], site.outputs[0]
        assert x is not None
        assert y is not None
        scope = y.scope
        readers = list(self.uses(y))
        if y.is_output or any(reader.scope is not scope for reader, _ in readers):
            if x.site is not None and x.scope is scope and not x.is_output:
                self._take_over(x, y)
            elif y.is_output or any(reader.scope.find(x.name) is not x for reader, _ in readers):
                self._make_identity(site, x)
                return
        name = x.name
        renamed = y.name != name
        for reader, at in readers:
            reader.values[at] = x
            if renamed:
                reader.node.input[at] = name
        x.uses += readers
        x.count += len(readers)
        y.count = 0
        self.kill(site)

    def _take_over(self, x: Value, y: Value) -> None:
        """x gets the name of y, which ceases to be."""
        scope, producer = x.scope, x.site
        assert producer is not None
        self.stale[scope].add(x.name)
        del scope.values[x.name]
        scope.values[y.name] = x
        x.name, x.is_output = y.name, y.is_output
        producer.node.output[x.slot] = y.name
        for reader, slot in self.uses(x):
            reader.node.input[slot] = y.name

    def _make_identity(self, site: Site, x: Value) -> None:
        node = site.node
        del node.attribute[:]
        node.op_type = site.op = "Identity"
        node.domain = ""
        del node.input[:], node.output[1:]
        node.input.append(x.name)
        old, site.values = site.values, [x]
        x.uses.append((site, 0))
        for value in old:
            if value is not None and value is not x:
                self._release(value)
        x.count -= sum(value is x for value in old) - 1

    # constants

    def name(self, stem: str) -> str:
        """A name that nothing in the model has yet: `stem`, with a number if it is taken."""
        if not self.taken:
            for scope in self.model.scopes:
                self.taken.update(scope.values)
        name, number = stem, self.numbers.get(stem, 1)
        while name in self.taken:
            number += 1
            name = f"{stem}_{number}"
        self.taken.add(name)
        self.numbers[stem] = number
        return name

    def replaceable(self, value: Value) -> onnx.TensorProto | None:
        """The stored tensor, if all its readers may see another value in it."""
        bound = value.name in self.model.bound and value.scope.parent is None
        return None if value.is_output or value.overridable or bound else stored_in(value)

    def replace(self, value: Value, tensor: onnx.TensorProto, array: Array) -> None:
        """Store another value under the same name, for all readers, in its `replaceable` tensor."""
        if array.shape != value.shape or _name(array.dtype) != value.dtype:
            self.stale[value.scope].add(value.name)
            value.shape = array.shape
            if self.listed_inputs:
                for info in self.model.loaded.proto.graph.input if value.scope.parent is None else ():
                    if info.name == value.name:
                        _describe(info, array)
        self.renewed[value.scope].add(value.name)
        self.model.loaded.set_array(tensor, array)

    def constant(self, stem: str, array: Array, near: Value | Site) -> Value:
        """A new stored value: an initializer, or in a function a Constant node.

        `near`: the value that it replaces for some of its readers, and behind which it is stored; or the node
        that reads it.
        """
        name, scope = self.name(stem), near.scope
        value = Value(name, scope)
        value.shape, value.dtype = array.shape, _name(array.dtype)
        scope.values[name] = value
        loaded = self.model.loaded
        if isinstance(scope.proto, onnx.FunctionProto):
            node = scope.proto.node.add(op_type="Constant", name=name)
            node.output.append(name)
            attribute = node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR)
            loaded.set_array(attribute.t, array)
            value.site, value.slot = Site(node, "Constant", scope), 0
            value.site.outputs.append(value)
            site, step = (near, -0.5) if isinstance(near, Site) else (near.site, 0.25)
            self.nodes[scope].added.append((node, None if site is None else site.node, step))
            return value
        tensor = scope.proto.initializer.add()
        tensor.name = name
        if array.dtype == _FLOAT32 and array.nbytes < CUT_FROM:  # as set_array does it, for many biases
            tensor.data_type, tensor.raw_data = 1, array.tobytes()
            tensor.dims.extend(array.shape)
        else:
            loaded.set_array(tensor, array)
        value.init = tensor
        self.initializers[scope].added.append((tensor, near.init if isinstance(near, Value) else None, 0.5))
        if self.listed_inputs and scope.parent is None:
            _describe(scope.proto.input.add(name=name), array)
        return value

    # nodes

    def value(self, stem: str, scope: Scope, like: Value | None = None) -> Value:
        """A value under a new name, with the shape and type of `like`, that a node is yet to give."""
        value = Value(self.name(stem), scope)
        if like is not None:
            value.shape, value.dtype = like.shape, like.dtype
        scope.values[value.name] = value
        return value

    def node(
        self,
        op: str,
        name: str,
        inputs: Iterable[Value | None],
        outputs: Sequence[Value],
        after: Site,
        **attributes: Any,
    ) -> Site:
        """A new node of the default domain behind another one, which gives `outputs` from now on."""
        scope = after.scope
        node = scope.proto.node.add(op_type=op, name=name)
        node.output.extend([value.name for value in outputs])
        node.attribute.extend([onnx.helper.make_attribute(*entry) for entry in attributes.items()])
        site = Site(node, op, scope)
        site.name = name
        for slot, value in enumerate(outputs):
            value.site, value.slot = site, slot
            site.outputs.append(value)
        for slot, source in enumerate(inputs):
            self.connect(site, slot, source)
        self.nodes[scope].added.append((node, after.node, 0.5))
        return site

    def restate(self, site: Site, attributes: Mapping[str, Any]) -> None:
        """State attributes of a node anew, behind its other ones; None removes one."""
        restate(site.node, attributes)
        site._attributes = None

    # the end

    def finish(self) -> None:
        """Remove what the changes have orphaned, and bring the file's lists up to date."""
        self.sweep()
        for scope, entries in self.nodes.items():
            entries.finish(scope.proto.node)
        for scope, entries in self.initializers.items():
            entries.finish(scope.proto.initializer)
        for scope, names in self.renewed.items():
            if not isinstance(scope.proto, onnx.FunctionProto):
                _drop(scope.proto.quantization_annotation, names, "tensor_name")
        for scope, names in self.stale.items():
            _drop(scope.proto.value_info, names, "name")
            if not isinstance(scope.proto, onnx.FunctionProto):
                values, listed = scope.values, self.listed_inputs and scope.parent is None
                if listed or len(scope.proto.quantization_annotation):
                    gone = {name for name in names if name not in values}
                    _drop(scope.proto.quantization_annotation, gone, "tensor_name")
                    _drop(scope.proto.input if listed else (), gone, "name")

    def sweep(self) -> None:
        """Remove what the last reader has gone of: constants and the nodes that computed them, or any."""
        for value in self.orphans:  # which grow as nodes go
            scope, name, init = value.scope, value.name, value.init
            if value.count > 0 or value.is_output or scope.values.get(name) is not value:
                continue
            if init is not None:
                if not value.overridable and name not in self.noted[scope]:
                    self.initializers[scope].gone[id(init)] = init
                    self.stale[scope].add(name)
                    del scope.values[name]
            elif value.site is not None and value.site.alive:
                site = value.site
                if (value.constant is not None or (self.prune and not site.bodies)) and not any(
                    other is not None and (other.count > 0 or other.is_output) for other in site.outputs
                ):
                    self.kill(site)
        self.orphans.clear()


def restate(node: onnx.NodeProto, attributes: Mapping[str, Any]) -> None:
    """`Surgery.restate` for a node of any model."""
    others = [entry for entry in node.attribute if entry.name not in attributes]
    del node.attribute[:]
    node.attribute.extend(others)
    stated = ((name, value) for name, value in attributes.items() if value is not None)
    node.attribute.extend([onnx.helper.make_attribute(*entry) for entry in stated])


def _noted(scope: Scope) -> set[str]:
    """Names that the file mentions beside the nodes."""
    if isinstance(scope.proto, onnx.FunctionProto):
        return set()
    names = set(scope.model.bound) if scope.parent is None else set()
    for entry in scope.proto.quantization_annotation:
        names.update(pair.value for pair in entry.quant_parameter_tensor_names)
    return names


@cache
def _name(dtype: np.dtype[Any]) -> str:
    """`dtype.name`, which numpy takes microseconds to put together."""
    return str(dtype.name)


def _drop(field: Any, names: set[str], key: str) -> None:
    """Remove the entries that describe one of the names."""
    if not names or not len(field):
        return
    entries = field[:]
    gone = {id(entry) for entry in entries if getattr(entry, key) in names}  # `entries` holds them
    if gone:
        field.sort(key=lambda entry: id(entry) in gone)  # stable
        del field[len(entries) - len(gone) :]


def _describe(info: onnx.ValueInfoProto, array: Array) -> None:
    tensor = info.type.tensor_type
    tensor.elem_type = CODES[array.dtype.name]
    del tensor.shape.dim[:]
    tensor.shape.SetInParent()
    for size in np.shape(array):
        tensor.shape.dim.add(dim_value=size)
