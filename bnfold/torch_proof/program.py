"""An exported program as the proof sees it: one scope of calls, and their constants.

Inputs and outputs have names by their place, "input 0", so that two programs may call them as they like. What
a program writes into its buffers is an output of it, and such a buffer an input. An item that is taken out of
what a call gives is no call of its own.
"""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from bnfold.errors import ModelError
from bnfold.proof.operator import Array, Undecided
from bnfold.proof.scope import CERTAIN, LARGEST, Scope
from bnfold.torch_proof import attention
from bnfold.torch_proof.call import Call, Slot, TorchOperator, to_array
from bnfold.torch_proof.operators import BOOLEAN, Reading, Stated, is_random, reading_of, writes

__all__ = ["Program", "shape_of"]

STATE = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
PARTS = ":scores", ":weights"  # of attention
# What moves numbers, in ATen's words.
_MOVES = "expand flatten permute reshape select slice squeeze t transpose unsqueeze view"


class Program(Scope):
    """A functional exported program.

    names: of calls, where they are to be called otherwise than in the graph. kinds: what the program says of
    a tensor or a number, by name. of_shapes: what depends on shapes and stored numbers only.
    """

    certain_operators = CERTAIN | {f"aten.{name}" for name in _MOVES.split()}

    def __init__(self, program: ExportedProgram, names: Mapping[str, str]) -> None:
        self.program, self.called = program, names
        self.kinds: dict[str, Any] = {}
        self.of_shapes: set[str] = set()
        self.at: dict[fx.Node, str] = {}  # names of values
        nodes = list(program.graph.nodes)
        calls = [node for node in nodes if node.op == "call_function"]
        for node in calls:
            _refuse(node)
        specs = program.graph_signature.output_specs
        self.signature = [f"what it takes is {program.call_spec.in_spec}"]
        self.signature.append(f"what it gives is {program.call_spec.out_spec}")
        self.signature += [
            f"output {i} goes to {spec.kind.name} {spec.target}" for i, spec in enumerate(specs)
        ]
        inputs, stored = self._placeholders([node for node in nodes if node.op == "placeholder"])
        super().__init__(inputs, [], stored)
        needed = _needed(nodes[-1])
        for node in calls:
            if node in needed:
                self._read(node)
        for i, value in enumerate(nodes[-1].args[0]):
            self._give(f"output {i}", value)

    # what goes in and out

    def _placeholders(self, nodes: Sequence[fx.Node]) -> tuple[list[str], dict[str, str]]:
        """The names of inputs; of what is stored, names in the graph and in the state."""
        signature, inputs, stored = self.program.graph_signature, list[str](), dict[str, str]()
        changed = {str(spec.target) for spec in signature.output_specs if spec.target}
        memory = {
            _memory(self._tensor_of(spec.target)) for spec in signature.input_specs if spec.target in changed
        }
        for node, spec in zip(nodes, signature.input_specs, strict=True):
            name, target = node.name, str(spec.target)
            if spec.kind is InputKind.USER_INPUT:
                name = f"input {sum(each.startswith('input ') for each in inputs)}"
                self.signature.append(
                    f"{name} is {_kind(node.meta.get('val'))} {getattr(spec.arg, 'value', '')}"
                )
                inputs.append(name)
            elif spec.kind not in STATE:
                raise ModelError(f"{name} is an input of another kind, {spec.kind.name}")
            elif _memory(self._tensor_of(target)) in memory:
                name = f"buffer {target}"
                self.signature.append(f"{name} holds {_bits(self._tensor_of(target))}")
                inputs.append(name)
            else:
                stored[name] = target
            self.at[node], self.kinds[name] = name, node.meta.get("val")
        return inputs, stored

    def _tensor_of(self, target: str) -> Any:
        state: Mapping[str, Any] = self.program.state_dict
        return state[target] if target in state else self.program.constants[target]

    def load(self, name: str) -> Array:
        value = self._tensor_of(self.stored[name])
        if not isinstance(value, torch.Tensor):
            raise ModelError(f"{name} is no tensor")
        try:
            return to_array(value)
        except Undecided as error:
            raise ModelError(f"{name}: {error}") from None

    def is_stored(self, name: str) -> bool:
        """With the numbers that calls state."""
        return name in self.stored or (name in self.values and name not in self.made)

    def _give(self, name: str, value: Any) -> None:
        """An output, under a name by its place."""
        if not isinstance(value, fx.Node):
            self.signature.append(f"{name} is {value!r}")
            return
        kind, number = value.meta.get("val"), _number(value)
        self.signature.append(f"{name} is {_kind(kind)}")
        self.outputs.append(name)
        target = torch.ops.aten.alias.default if number is None else operator.pos
        same = TorchOperator("Identity", target, {"self": Slot(0, number)}, True)
        called = self.called.get(value.name, value.name)
        self._add(
            Call("Identity", called, [self.at[value]], [name], same, len(self.nodes), {}, False), [kind]
        )

    def against(self, other: Scope) -> str:
        assert isinstance(other, Program)
        if len(self.signature) != len(other.signature):
            return "it has another number of inputs or outputs"
        pairs = zip(self.signature, other.signature, strict=True)
        return next((f"{ours}; {theirs} there" for ours, theirs in pairs if ours != theirs), "")

    # calls

    def _read(self, node: fx.Node) -> None:
        source = node.args[0] if node.args else None
        if node.target is operator.getitem and isinstance(source, fx.Node) and _parts(source) is not None:
            return  # it has its name from the call
        if isinstance(node.target, torch._ops.OpOverload):
            stated = Stated(node)
            if attention.in_parts(stated):
                self._attention(node, stated)
                return
            reading, known = reading_of(stated)
            random, arguments = is_random(stated, node.target.tags), stated.given
        else:
            reading, known, random = Reading(f"python.{_name_of(node.target)}"), True, False
            arguments = {str(i): value for i, value in enumerate(node.args)}
        inputs, template = self._template(node, reading, arguments)
        kinds = _parts(node)
        names = self._outputs(node, kinds)
        known = known and self._is_of_floats(node, reading, inputs, kinds, names)
        made = TorchOperator(reading.op, node.target, template, known)
        name = self.called.get(node.name, node.name)
        call = Call(reading.op, name, inputs, names, made, len(self.nodes), reading.attributes, random)
        self._add(call, [node.meta.get("val")] if kinds is None else kinds)

    def _attention(self, node: fx.Node, call: Stated) -> None:
        """Three nodes. Of the first two no certificate speaks: scores may be off by what a Softmax undoes."""
        query, key, value, mask = (call[name] for name in ("query", "key", "value", "attn_mask"))
        read = [source for source in (query, key, mask) if source is not None]
        stated: dict[str, Any] = {"0": Slot(0), "1": Slot(1), "2": call["is_causal"], "3": call["scale"]}
        stated |= {} if mask is None else {"4": Slot(2)}
        shapes = [shape_of(source.meta["val"]) for source in (query, key)]
        made: Any = None
        if shapes[0] is not None and shapes[1] is not None:
            made = torch.empty(attention.shape_of_scores(shapes[0], shapes[1]), device="meta")
        one, two = (f"{node.name}{part}" for part in PARTS)
        self.at[node] = node.name
        both = {"0": Slot(0), "1": Slot(1)}
        at = [self.at[source] for source in read]
        self._part(node, "aten.scores", at, one, made, attention.scores, stated)
        self._part(node, "Softmax", [one], two, made, attention.weights, {"0": Slot(0)}, axis=-1)
        self._part(
            node, "MatMul", [two, self.at[value]], node.name, node.meta["val"], attention.product, both
        )

    def _part(
        self,
        node: fx.Node,
        op: str,
        inputs: Sequence[str],
        output: str,
        kind: Any,
        target: Callable[..., Any],
        arguments: Mapping[str, Any],
        **attributes: Any,
    ) -> None:
        known = self._is_of_floats(node, Reading(op), inputs, None, [output])
        made, name = TorchOperator(op, target, arguments, known), self.called.get(node.name, node.name)
        self._add(Call(op, name, inputs, [output], made, len(self.nodes), attributes, False), [kind])

    def is_named(self, name: str) -> bool:
        return not name.endswith(PARTS)

    def _template(
        self, node: fx.Node, reading: Reading, arguments: Mapping[str, Any]
    ) -> tuple[list[str], dict[str, Any]]:
        """The names that a call reads, and its arguments with slots in their places. A number in the place of
        a tensor is a constant.
        """
        if reading.reads is None:
            sources = node.all_input_nodes
            slots = {source: Slot(i, _number(source)) for i, source in enumerate(sources)}
            template = {name: _slotted(value, slots) for name, value in arguments.items()}
            return [self.at[source] for source in sources], template
        inputs, template = list[str](), dict(arguments)
        for index, name in enumerate(reading.reads):
            value = arguments.get(name)
            if isinstance(value, fx.Node):
                inputs.append(self.at[value])
                template[name] = Slot(index, _number(value))
            elif value is None:
                inputs.append("")
            else:
                inputs.append(f"{node.name}:{name}")
                self.values[inputs[-1]] = np.asarray(float(value))
                template[name] = Slot(index, type(value))
        return inputs, template

    def _outputs(self, node: fx.Node, kinds: Sequence[Any] | None) -> list[str]:
        """Names; "" for what nobody takes out."""
        if kinds is None:
            self.at[node] = node.name
            return [node.name]
        names = [""] * len(kinds)
        for user in node.users:
            index = user.args[1]
            if user.target is not operator.getitem or type(index) is not int:
                raise ModelError(f"{user.name} reads a list of tensors")
            names[index] = names[index] or user.name
            self.at[user] = names[index]
        return names

    def _is_of_floats(
        self,
        node: fx.Node,
        reading: Reading,
        inputs: Sequence[str],
        kinds: Sequence[Any] | None,
        names: Sequence[str],
    ) -> bool:
        """Whether all of a call that depends on data are floating numbers: others are no points of a
        function that is analytic.
        """
        data = [
            name for name in inputs if name and self.constant(name) is None and name not in self.of_shapes
        ]
        if reading.op == "Shape" or not data:
            return True
        for name in data[1:] if reading.op == "Where" and data[0] == inputs[0] else data:
            kind = self.kinds[name]
            if not isinstance(kind, torch.Tensor) or not kind.is_floating_point():
                return False
        if reading.op in BOOLEAN.values():
            return True
        made = [node.meta.get("val")] if kinds is None else kinds
        return all(
            kind.is_floating_point()
            for kind, name in zip(made, names, strict=True)
            if name and isinstance(kind, torch.Tensor)
        )

    def _add(self, call: Call, kinds: Sequence[Any]) -> None:
        self.nodes.append(call)
        for slot, (name, kind) in enumerate(zip(call.outputs, kinds, strict=True)):
            if name:
                self.made[name], self.kinds[name] = (call, slot), kind
        if call.random:
            return
        given = [self.constant(name) if name else None for name in call.inputs]
        fixed = all(name in self.of_shapes or self.constant(name) is not None for name in call.inputs if name)
        if fixed or call.op == "Shape":
            self.of_shapes.update(filter(None, call.outputs))
        if all(map(_is_small, kinds)):
            self.compute(call, given)


def _refuse(node: fx.Node) -> None:
    """Raises ModelError where a program does more than to compute values of values."""
    if isinstance(node.target, torch._ops.OpOverload):
        if node.target._schema.is_mutable or writes(Stated(node)):
            raise ModelError(f"{node.name} writes into what it reads: the program is not functional")
    elif node.target is not operator.getitem:
        module, name = getattr(node.target, "__module__", ""), _name_of(node.target)
        numbers = module in ("_operator", "math") or (module == "torch" and name.startswith("sym_"))
        if not numbers or any(_number(source) is None for source in node.all_input_nodes):
            raise ModelError(f"{node.name} calls {name}, which is no operator")


def _slotted(value: Any, slots: Mapping[fx.Node, Slot]) -> Any:
    if isinstance(value, (list, tuple)):
        return [_slotted(item, slots) for item in value]
    return slots[value] if isinstance(value, fx.Node) else value


def _name_of(target: Any) -> str:
    return str(getattr(target, "__name__", target))


def _number(node: fx.Node) -> Callable[[Any], Any] | None:
    """What makes Python's number of what a node gives; None: it is a tensor."""
    kind = node.meta.get("val")
    for types, number in (((bool, torch.SymBool), bool), ((int, torch.SymInt), int)):
        if isinstance(kind, types):
            return number
    return float if isinstance(kind, (float, torch.SymFloat)) else None


def _parts(node: fx.Node) -> Sequence[Any] | None:
    """Of what a call gives, if that is several values."""
    kind = node.meta.get("val")
    return kind if isinstance(kind, (tuple, list)) else None


def _needed(output: fx.Node) -> set[fx.Node]:
    """What the outputs depend on."""
    seen, stack = set[fx.Node](), [output]
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            stack += node.all_input_nodes
    return seen


def _kind(kind: Any) -> str:
    """Type and shape in words; a size that is free is a question mark."""
    if not isinstance(kind, torch.Tensor):
        return type(kind).__name__
    sizes = ", ".join(str(size) if isinstance(size, int) else "?" for size in kind.shape)
    return f"{kind.dtype} of ({sizes})"


def _memory(tensor: Any) -> int:
    """Two names of one tensor change together."""
    return tensor.data_ptr() if isinstance(tensor, torch.Tensor) and tensor.numel() else id(tensor)


def _bits(tensor: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(to_array(tensor)).tobytes()).hexdigest()[:16]


def shape_of(kind: torch.Tensor) -> tuple[int, ...] | None:
    """The shape in the example; None if a size is not known there."""
    found: list[int] = []
    for size in kind.shape:
        hint = size if isinstance(size, int) else size.node.hint
        if hint is None:
            return None
        found.append(int(hint))
    return tuple(found)


def _is_small(kind: Any) -> bool:
    shape = shape_of(kind) if isinstance(kind, torch.Tensor) else ()
    return shape is not None and math.prod(shape) <= LARGEST
