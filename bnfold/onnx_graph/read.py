"""From a model to what the solver sees of it: tensors, nodes, roles."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bnfold.fold.graph import Graph, Node, Role, Tensor
from bnfold.fold.role_builders import set_moments
from bnfold.fold.roles import Affine, Closed, is_data
from bnfold.onnx_graph.file.loaded import Loaded
from bnfold.onnx_graph.model.constants import constant_of, resolve
from bnfold.onnx_graph.model.infer import infer
from bnfold.onnx_graph.model.scopes import build, without_gc
from bnfold.onnx_graph.ops.batch_norms import Norm, read_together
from bnfold.onnx_graph.ops.sequences import is_only_indexed, slice_from
from bnfold.onnx_graph.ops.table import OPERATORS, UNKNOWN, role_of
from bnfold.onnx_graph.site import BIGGEST_OPERAND, FLOATS, INLINE, STATE, Model, Scope, Site, Value

__all__ = ["analysed", "read", "scope_of"]

# what a row may stumble over in a node whose attributes or inputs are not what the operator asks for
_DAMAGE = (AttributeError, IndexError, KeyError, TypeError, ValueError, ArithmeticError)


def read(loaded: Loaded, shared: str = "duplicate") -> Graph:
    """The solver's view of a model; `Node.source` is the `Site`, from which `write.apply` finds its way back.

    Args:
        loaded: the model. It is not changed.
        shared: "skip" locks stored values that have several users; "error" lets the writer refuse a copy.

    Raises:
        ModelError: the model cannot run: an undefined name, shapes that do not match, a negative variance.
    """
    with without_gc():
        model, scopes = build(loaded, shared)
        infer(model, scopes)
        reader = _Reader(model)
        for scope in scopes:
            reader.scope(scope)
        reader.graph.end = model.clear
        return reader.graph


def analysed(loaded: Loaded) -> Model:
    """What a pass begins with: names, nodes and shapes. The main graph is `scopes[0]`. Raises as `read`."""
    model, scopes = build(loaded, "duplicate")
    infer(model, scopes)
    return model


def scope_of(node: Node) -> Scope:
    """The graph, body or function that a node of the solver's view is in."""
    site: Site = node.source
    return site.scope


class _Reader:
    def __init__(self, model: Model) -> None:
        self.model = model
        self.graph = Graph()
        self.norms: dict[Site, Norm] = {}

    def scope(self, scope: Scope) -> None:
        """Read all nodes of a scope and of the bodies in it."""
        self.norms.update(read_together(scope.sites))
        for site in scope.sites:
            self.site(site)
            for body in site.bodies or ():
                self.scope(body)

    def site(self, site: Site) -> None:
        op, values, norm = site.op, site.values, self.norms.get(site)
        role: Role
        if norm is not None:
            self.norm(site, norm)
            return
        record = OPERATORS.get(op, UNKNOWN)
        if record.evaluate is not None or op == "DequantizeLinear":
            first = site.outputs[0] if site.outputs else None
            if first is not None and constant_of(first) is not None:
                return  # it is no part of the flow
        if op in ("SplitToSequence", "SequenceAt") and (part := _part(site)) is not None:
            values, role = part
            if not values:
                return
        else:
            role = self.role(site)
            if isinstance(role, Closed) and op == "BatchNormalization":
                role = replace(role, listed=True)
        node = Node(site.name, op, role, [], [], site)
        inputs = node.inputs
        unseen = record.unseen
        while values and values[-1] is None:  # left out at the end, as mostly by no name at all
            values = values[:-1]
        for slot, value in enumerate(values):
            if value is None or slot in unseen:
                inputs.append(None)
                continue
            tensor = value.tensor
            if tensor is None:
                if not value.resolved:
                    resolve(value)
                if value.constant is None:
                    tensor = self.tensor(value)
                elif not isinstance(role, Closed) and is_data(role, slot):
                    tensor = self.operand(site, slot)
                else:
                    inputs.append(None)
                    continue
            tensor.readers.append((node, slot))
            inputs.append(tensor)
        self.outputs(site, node)
        if isinstance(role, Affine):
            self.affine(role, node)

    def norm(self, site: Site, norm: Norm) -> None:
        """One that was read with others."""
        role, before, after = norm
        value = site.values[0]
        assert value is not None
        if constant_of(value) is None:
            x = value.tensor or self.tensor(value)
        else:
            x = self.operand(site, 0)
        node = Node(site.name, site.op, role, [x, None, None, None, None], [], site)
        x.readers.append((node, 0))
        self.outputs(site, node)
        x.moments, node.outputs[0].moments = before, after
        self.may_go(role, node)

    def outputs(self, site: Site, node: Node) -> None:
        outputs = node.outputs
        for slot, value in enumerate(site.outputs):
            if value is None:
                tensor = Tensor(f"{site.name}:{slot}")
                self.graph.tensors.append(tensor)
            else:
                tensor = value.tensor or self.tensor(value)
            tensor.producer, tensor.slot = node, -1 - slot
            outputs.append(tensor)
        self.graph.nodes.append(node)

    def role(self, site: Site) -> Role:
        node, functions = site.node, self.model.functions
        if functions and (node.domain, node.op_type, node.overload) in functions:
            return Closed(f"calls the function {node.op_type}", cure=INLINE)
        try:
            return role_of(site)
        except _DAMAGE as error:
            return Closed(f"cannot be understood: {error}")

    def tensor(self, value: Value) -> Tensor:
        fixed = value.fixed
        value.tensor = tensor = Tensor(value.name, value.shape, value.dtype)
        if fixed:
            tensor.cure = value.cure
        elif value.shape is None and (value.dtype in FLOATS or not value.dtype):
            fixed, tensor.cure = "unknown rank", STATE
        tensor.fixed = fixed
        self.graph.tensors.append(tensor)
        return tensor

    def operand(self, site: Site, slot: int) -> Tensor:
        site.operand(slot)
        assert site.private is not None
        tensor = site.private[slot]
        constant = tensor.constant
        assert constant is not None
        if not constant.locked and constant.dtype not in FLOATS:
            constant.locked = "is not of a floating point type"
        elif not constant.locked and np.prod(constant.shape, dtype=float) > BIGGEST_OPERAND:
            constant.locked = "is too large to be rewritten"
        self.graph.tensors.append(tensor)
        return tensor

    def affine(self, role: Affine, node: Node) -> None:
        """What an affine node adds to what is known of the tensors around it."""
        self.may_go(role, node)
        if node.inputs[role.x] is not None:
            set_moments(node)

    def may_go(self, role: Affine, node: Node) -> None:
        """Say why an affine node has to stay, where the operator itself does not know."""
        x = node.inputs[role.x]
        if role.stay:
            return
        if x is not None and x.constant is not None:
            role.stay = "its input is constant"
        elif self.model.bound and any("training_info" in c.locked for _, c in role.constants.values()):
            role.stay = "its parameters are used by training_info"


def _part(site: Site) -> tuple[list[Value | None], Role] | None:
    """For a SequenceAt of a plain split: what it is a slice of, and its role; no values for the split."""
    if site.op == "SplitToSequence":
        return ([], Closed()) if is_only_indexed(site) else None
    part = slice_from(site)
    if part is None or not is_only_indexed(part[0]):
        return None
    source = part[0].values[0]
    return None if source is None or constant_of(source) is not None else ([source], part[1])
