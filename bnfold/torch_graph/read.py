"""From an exported program to what the solver sees of it: tensors, nodes, roles."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from bnfold.fold.graph import Graph, Node, Role, Tensor
from bnfold.fold.role_builders import set_moments
from bnfold.fold.roles import Affine, Closed, is_data
from bnfold.torch_graph.arrays import FLOATS, dtype_name
from bnfold.torch_graph.call import Call, Stored, innermost, op_of, reads, shape_of, within
from bnfold.torch_graph.ops.shaping import RESHAPES
from bnfold.torch_graph.ops.table import role_of

__all__ = ["Program", "read"]

BIGGEST_OPERAND = 1 << 24  # elements of a constant operand that may be rewritten
CREATE = ("zeros", "ones", "full", "scalar_tensor")  # of nothing
# operators of whose inputs, from this slot on, only the shape or the type counts
_UNSEEN = {
    **{f"{kind}_like": 0 for kind in ("zeros", "ones", "full", "empty", "rand", "randn")},
    **{f"new_{kind}": 0 for kind in ("zeros", "ones", "full", "empty")},
    **{f"sym_{what}": 0 for what in ("size", "numel", "stride")},
    "type_as": 1,
}
_STATE = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


class Program:
    """What an exported program stores, and what of it is known before it runs."""

    def __init__(self, program: ExportedProgram, shared: str) -> None:
        self.program, self.shared = program, shared
        self.stored: dict[fx.Node, Stored] = {}
        kinds = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
        changed = {spec.target for spec in program.graph_signature.output_specs if spec.target}
        for node in program.graph.nodes:
            if node.op == "placeholder":
                spec = kinds.get(node.name)
                if spec is not None and spec.kind in _STATE and spec.target not in changed:
                    self.stored[node] = Stored(partial(self.state, str(spec.target)), str(spec.target))
            elif node.op == "call_function" and self._is_computed(node):
                self.stored[node] = Stored(partial(self._compute, node), self._seen_through(node))

    def state(self, target: str) -> torch.Tensor:
        """A parameter, buffer or constant by name."""
        state: Mapping[str, Any] = self.program.state_dict
        value = state[target] if target in state else self.program.constants[target]
        assert isinstance(value, torch.Tensor)
        return value

    def locked(self, node: fx.Node) -> str:
        """Why a stored value must not be rewritten ("" if it may)."""
        return "has several users" if self.shared == "skip" and len(node.users) > 1 else ""

    def _is_computed(self, node: fx.Node) -> bool:
        target, value = node.target, node.meta.get("val")
        values = value if isinstance(value, (tuple, list)) else (value,)
        if not all(isinstance(part, torch.Tensor) for part in values):
            return False
        if isinstance(target, torch._ops.OpOverload):
            if torch.Tag.nondeterministic_seeded in target.tags or target._schema.is_mutable:
                return False
        elif target is not operator.getitem:
            return False
        static = all(isinstance(size, int) for part in values for size in part.shape)
        sources = node.all_input_nodes
        return static and bool(sources or op_of(node) in CREATE) and all(n in self.stored for n in sources)

    def _seen_through(self, node: fx.Node) -> str:
        """The parameter that this is another shape of, for one reader; else ""."""
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or op_of(node) not in RESHAPES:
            return ""
        return self.stored[source].target if len(node.users) == 1 else ""

    def _compute(self, node: fx.Node) -> Any:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: self.stored[n].load())
        with torch.no_grad():
            return node.target(*args, **kwargs)  # type: ignore[operator]


def read(program: ExportedProgram, shared: str = "duplicate") -> Graph:
    """The solver's view of a functional exported program; `Node.source` is the `fx.Node`."""
    return _Reader(Program(program, shared)).run()


def item_of(node: fx.Node) -> int:
    """Which output a `getitem` takes."""
    index = node.args[1]
    assert isinstance(index, int)
    return index


class _Reader:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.graph = Graph()
        self.tensors: dict[fx.Node, Tensor] = {}
        self.names: set[str] = set()

    def run(self) -> Graph:
        for node in self.program.program.graph.nodes:
            if node.op == "placeholder" and node not in self.program.stored:
                self.tensor(node).fixed = "graph input"
            elif node.op == "call_function" and node not in self.program.stored:
                if "_assert_tensor_metadata" in str(node.target):
                    continue  # of the tracer: it changes nothing
                if node.target is not operator.getitem or node not in self.tensors:
                    self.call(node)
            elif node.op == "get_attr":
                self.tensor(node).fixed = "is a stored attribute"
            elif node.op == "output":
                for source in node.all_input_nodes:
                    if source in self.tensors:
                        self.tensors[source].fixed = self.tensors[source].fixed or "graph output"
        return self.graph

    def tensor(self, node: fx.Node) -> Tensor:
        value = node.meta.get("val")
        shape = shape_of(value)
        dtype = dtype_name(value.dtype) if isinstance(value, torch.Tensor) else ""
        self.tensors[node] = tensor = Tensor(node.name, shape, dtype)
        if shape is None:
            tensor.fixed = "is no tensor"
        elif dtype not in map(dtype_name, FLOATS):
            tensor.fixed = "does not hold floating point numbers"
        self.graph.tensors.append(tensor)
        return tensor

    def call(self, node: fx.Node) -> None:
        role: Role = Closed("is not an operator of ATen")
        slots: list[Any] = list(node.all_input_nodes)
        op = str(node.target)
        if isinstance(node.target, torch._ops.OpOverload):
            call = Call(node, self.program.stored, self.program.locked)
            role, op = role_of(call), call.op
            if not isinstance(role, Closed):
                slots = reads(node)
                while slots and not isinstance(slots[-1], fx.Node):
                    slots.pop()  # `alpha` of an addition and the like
            if op in _UNSEEN:
                slots = slots[: _UNSEEN[op]]
        op = "batch_norm" if "batch_norm" in op else op  # whatever torch makes of it
        found = Node(self.name(node, op), op, role, [], [], node)
        takes = not isinstance(role, Closed)
        for slot, source in enumerate(slots):
            source = source if isinstance(source, fx.Node) else None
            tensor = self.tensors.get(source) if source is not None else None
            if tensor is None and takes and source in self.program.stored and is_data(role, slot):
                tensor = self.operand(source)
            if tensor is not None:
                tensor.readers.append((found, slot))
            found.inputs.append(tensor)
        self.outputs(node, found)
        self.graph.nodes.append(found)
        if isinstance(role, Affine) and found.inputs[role.x] is not None:
            set_moments(found)

    def operand(self, source: fx.Node) -> Tensor:
        """A constant as data of this call alone, which may be rewritten."""
        value, locked = source.meta["val"], self.program.locked(source)
        if not value.dtype.is_floating_point or value.numel() > BIGGEST_OPERAND:
            locked = locked or "is not of a floating point type, or too large to be rewritten"
        constant = self.program.stored[source].constant(source, locked)
        tensor = Tensor(source.name, constant.shape, constant.dtype, constant=constant)
        self.graph.tensors.append(tensor)
        return tensor

    def outputs(self, node: fx.Node, found: Node) -> None:
        value = node.meta.get("val")
        if not isinstance(value, (tuple, list)):
            self.attach(self.tensor(node), found)
            return
        items = {item_of(user): user for user in node.users if user.target is operator.getitem}
        for index, part in enumerate(value):
            if index in items:
                tensor = self.tensor(items[index])
            else:
                tensor = Tensor(f"{node.name}:{index}", shape_of(part))
                self.graph.tensors.append(tensor)
            self.attach(tensor, found)
        for user in node.users:  # the same item asked for twice is one tensor
            if user.target is operator.getitem and user not in self.tensors:
                self.tensors[user] = self.tensors[items[item_of(user)]]

    @staticmethod
    def attach(tensor: Tensor, found: Node) -> None:
        tensor.producer, tensor.slot = found, -1 - len(found.outputs)
        found.outputs.append(tensor)

    def name(self, node: fx.Node, op: str) -> str:
        """The module that makes the call, as the user knows it; else the name in the graph."""
        path = innermost(node)
        if op == "batch_norm" and not path:  # the tracer may have lost it
            sources = [
                self.program.stored[n].target for n in node.all_input_nodes if n in self.program.stored
            ]
            path = next((target.rpartition(".")[0] for target in sources if target), "")
        leaf = isinstance(node.target, torch._ops.OpOverload) and any(
            source in self.program.stored for source in node.all_input_nodes
        )
        times = next(reversed(within(node)), "").rpartition("@")  # as torch counts the calls of a module
        again = f"{path}@{times[2]}" if path and times[1] and times[2].isdigit() else path
        name = next((each for each in (path, again) if each and leaf and each not in self.names), node.name)
        name = op if op == "batch_norm" and name == node.name else name
        while name in self.names:
            name += "_"
        self.names.add(name)
        return name
