"""From a plan's edits to a new exported program; the one that was read stays as it is."""

from __future__ import annotations

import copy
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputSpec,
    TensorArgument,
)

from bnfold.errors import UsageError
from bnfold.fold.edits import AddBias, Bypass, Edit, Operand, Rescale, Resum, Retype, SetValue, SetWindows
from bnfold.fold.graph import Array, Graph
from bnfold.fold.roles import Affine
from bnfold.torch_graph.arrays import to_tensor
from bnfold.torch_graph.call import JOINS, innermost, op_of, readers, reads, set_argument, set_read

__all__ = ["apply"]

_NAMES = {"epsilon": "eps"}  # where a role has another name than ATen
NewValue = tuple[fx.Node, int, Array]  # a call, its slot, and what it should read there


def apply(
    program: ExportedProgram,
    graph: Graph,
    edits: Sequence[Edit],
    shared: str,
    moved: dict[str, str] | None = None,
) -> ExportedProgram:
    """A new program with the edits made; what they do not name is shared with the old one.

    moved: gets, by a value's name, the name of the new one that stands for it.

    Raises:
        UsageError: a parameter would have to be duplicated, and `shared` is "error".
    """
    writer = _Writer(program, shared)
    made = writer.run(edits)
    if moved is not None:
        moved.update(writer.moved)
    return made


class _Writer:
    def __init__(self, program: ExportedProgram, shared: str) -> None:
        self.program, self.shared = program, shared
        self.copied: dict[fx.Node, fx.Node] = {}
        new = fx.Graph()
        output = new.graph_copy(program.graph, self.copied)
        assert output is not None
        old = next(node for node in program.graph.nodes if node.op == "output")
        new.output(output).meta = dict(old.meta)
        for before, after in self.copied.items():  # fx gives a copy other names than the signature has
            after.name = before.name
        new._codegen = copy.copy(program.graph._codegen)
        self.graph = new
        signature = program.graph_signature
        self.inputs: list[InputSpec] = list(signature.input_specs)
        self.outputs: list[OutputSpec] = list(signature.output_specs)
        self.state: dict[str, Any] = dict(program.state_dict)
        self.constants = dict(program.constants)
        self.specs = {spec.arg.name: spec for spec in self.inputs}
        self.memory = Counter(v.data_ptr() for v in self.state.values() if isinstance(v, torch.Tensor))
        self.new_values: dict[fx.Node, list[NewValue]] = {}
        self.biases: list[tuple[fx.Node, Array]] = []  # of operators that take none
        self.moved: dict[str, str] = {}  # by a value's name, that of a new call that stands for it

    def run(self, edits: Sequence[Edit]) -> ExportedProgram:
        bypassed: list[tuple[fx.Node, int]] = []
        for edit in edits:
            node = self.copied[edit.node.source]
            if isinstance(edit, SetValue):
                self.set_value(node, edit)
            elif isinstance(edit, AddBias):
                if "bias" in _schema(node):
                    self.argument(node, _schema(node).index("bias"), edit.value)
                else:
                    self.biases.append((node, edit.value))
            elif isinstance(edit, Bypass):
                assert isinstance(edit.node.role, Affine)
                bypassed.append((node, edit.node.role.x))
            elif isinstance(edit, SetWindows):
                _set_windows(node, edit)
            elif isinstance(edit, Resum):
                self.resum(node, [self.operand(operand) for operand in edit.operands])
            else:
                assert not isinstance(edit, (Rescale, Retype)), "no row of the table asks for this"
        for source, values in self.new_values.items():
            self.replace(source, values)
        for node, array in self.biases:
            self.add_bias(node, array)
        for node, slot in bypassed:
            self.bypass(node, slot)
        self.sweep()
        return self.finish()

    def set_value(self, node: fx.Node, edit: SetValue) -> None:
        if isinstance(edit.key, str):
            set_argument(node, _NAMES.get(edit.key, edit.key), np.asarray(edit.value).reshape(-1)[0].item())
            return
        source = reads(node)[edit.key]
        if isinstance(source, fx.Node):
            array, shape = np.asarray(edit.value), tuple(source.meta["val"].shape)
            if array.ndim != len(shape) and array.size == math.prod(shape):  # seen in another shape
                array = array.reshape(shape)
            self.new_values.setdefault(source, []).append((node, edit.key, array))
        else:
            self.argument(node, edit.key, np.asarray(edit.value))

    def replace(self, source: fx.Node, values: list[NewValue]) -> None:
        """In place if all readers of a parameter want the same; else a new parameter for each of them."""
        spec = self.specs.get(source.name)
        first = values[0][2]
        alone = len(readers(source)) == len({(node, slot) for node, slot, _ in values}) and all(
            np.array_equal(first, array) for _, _, array in values[1:]
        )
        # two names of one memory are two parameters from now on
        aliased = spec is not None and self.memory[self.value(str(spec.target)).data_ptr()] > 1
        if spec is not None and alone and not aliased:
            old = self.value(str(spec.target))
            new = to_tensor(first, old)
            if new.shape != old.shape:  # a kernel of another size, a number that is one for each channel now
                _describe(source, new)
            self.put(str(spec.target), _like(new, old))
            return
        if spec is not None and self.shared == "error":
            names = ", ".join(user.name for user in source.users)
            raise UsageError(
                f"the parameter {spec.target!r} is shared by {names}, which need different ones after the "
                "fold; allow that (shared='duplicate'), or keep what needs it (shared='skip')"
            )
        for node, slot, array in values:
            self.argument(node, slot, array, like=source.meta["val"])

    def value(self, target: str) -> torch.Tensor:
        value = self.state[target] if target in self.state else self.constants[target]
        assert isinstance(value, torch.Tensor)
        return value

    def put(self, target: str, value: torch.Tensor) -> None:
        (self.state if target in self.state else self.constants)[target] = value

    def add_bias(self, node: fx.Node, array: Array) -> None:
        """A plain matrix product becomes `addmm`; any other gets an addition behind it."""
        bias = self.parameter(node, "bias", array)
        matrices = [] if op_of(node) in JOINS else [value.meta["val"].dim() for value in node.args[:2]]  # type: ignore[union-attr]
        if matrices == [2, 2] and array.ndim == 1:
            node.target = torch.ops.aten.addmm.default
            node.args = (bias, *node.args)
            return
        with self.graph.inserting_after(node):
            add = self.graph.call_function(torch.ops.aten.add.Tensor, (node, bias))
        add.meta.update(node.meta)
        node.replace_all_uses_with(add, delete_user_cb=lambda user: user is not add)
        self.rename_output(node, add)
        self.moved[node.name] = add.name

    def argument(self, node: fx.Node, slot: int, array: Array, like: Any = None) -> None:
        """Give an argument a parameter of its own, named after the call."""
        names = _schema(node)
        part = str(slot) if op_of(node) in JOINS or slot >= len(names) else names[slot]
        set_read(node, slot, self.parameter(node, part, array, like))
        if str(node.target).endswith(".Scalar"):  # a number becomes a tensor
            node.target = getattr(torch.ops.aten, op_of(node)).Tensor

    def parameter(self, node: fx.Node, part: str, array: Array, like: Any = None) -> fx.Node:
        """A new parameter, named after the call, of the type of `like` or of the call's first tensor."""
        x = next(n for n in node.all_input_nodes if isinstance(n.meta.get("val"), torch.Tensor))
        kind = like if like is not None else x.meta["val"]
        target = self.new_target(node, part)
        device = next((v.device for v in self.state.values() if isinstance(v, torch.Tensor)), "cpu")
        example = torch.empty(0, dtype=kind.dtype, device=device)
        if like is not None and tuple(like.shape) == array.shape:
            example = torch.empty_strided(array.shape, like.stride(), dtype=like.dtype, device=device)
        tensor = to_tensor(array, example)
        self.state[target] = torch.nn.Parameter(tensor, requires_grad=False)
        first = next(n for n in self.graph.nodes if n.op == "placeholder")
        with self.graph.inserting_before(first):
            placeholder = self.graph.placeholder("p_" + re.sub(r"\W", "_", target))
        placeholder.target = placeholder.name  # which no other has
        placeholder.meta["val"] = kind
        _describe(placeholder, tensor)
        spec = InputSpec(InputKind.PARAMETER, TensorArgument(placeholder.name), target)
        self.inputs.insert(0, spec)
        self.specs[placeholder.name] = spec
        return placeholder

    def new_target(self, node: fx.Node, part: str) -> str:
        """A name for a parameter of this call that nothing has: beside its other ones, or in its module."""
        stored = (self.specs[n.name].target for n in node.all_input_nodes if n.name in self.specs)
        beside = (str(name).rpartition(".")[0] for name in stored if name)
        path = next(filter(None, beside), innermost(node))
        target = f"{path}.{part}" if path else f"{node.name}_{part}"
        while target in self.state or target in self.constants:
            target += "_bnfold"
        return target

    def rename_output(self, old: fx.Node, new: fx.Node) -> None:
        """Where a tensor is an output of the program, another one is from now on."""
        self.outputs = [
            replace(spec, arg=TensorArgument(new.name)) if spec.arg.name == old.name else spec
            for spec in self.outputs
        ]

    def bypass(self, node: fx.Node, slot: int) -> None:
        """Let the readers of a node's output read its input at `slot` instead."""
        self.give_way(node, reads(node)[slot])

    def give_way(self, node: fx.Node, x: fx.Node) -> None:
        """Let the readers of a node's (first) output read another one."""
        for y in _values(node):
            self.rename_output(y, x)
            y.replace_all_uses_with(x)

    def operand(self, operand: Operand) -> fx.Node:
        """What a call reads at a slot, or gives."""
        node, slot = self.copied[operand[0].source], operand[1]
        value = node if slot < 0 else reads(node)[slot]
        assert isinstance(value, fx.Node)
        return value

    def resum(self, node: fx.Node, values: list[fx.Node]) -> None:
        """Let the readers of a node's output read the sum of these instead."""
        whole, *others = values
        value = node.meta["val"]
        meta = node.meta | {"val": value[0] if isinstance(value, (tuple, list)) else value}
        if not others:
            whole.meta["val"] = meta["val"]  # the first of two in a row gives what the second one gave
        at = node
        for other in others:
            with self.graph.inserting_after(at):
                at = whole = self.graph.call_function(torch.ops.aten.add.Tensor, (whole, other))
            whole.meta.update(meta)
        if others:
            self.moved.update(dict.fromkeys((y.name for y in _values(node)), whole.name))
        self.give_way(node, whole)

    def sweep(self) -> None:
        """Remove calls and parameters that nobody reads any more, and counters of batch norms that went."""
        unread = {node.name for node in self.program.graph.nodes if not node.users}
        for node in reversed(list(self.graph.nodes)):
            if node.op == "call_function" and not node.users and not node.is_impure():
                self.graph.erase_node(node)
        gone: set[str] = set()
        for node in list(self.graph.nodes):
            spec = self.specs.get(node.name)
            if node.op != "placeholder" or node.users or spec is None or node.name in unread:
                continue
            if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and spec.target:
                self.forget(node, spec)
                gone.add(spec.target.rpartition(".")[0])
        nodes = {node.name: node for node in self.graph.nodes}
        for spec in list(self.inputs):
            prefix, _, name = str(spec.target).rpartition(".")
            counter = name == "num_batches_tracked" and f"{prefix}.running_mean" not in self.state
            if counter and prefix in gone and not nodes[spec.arg.name].users:
                self.forget(nodes[spec.arg.name], spec)

    def forget(self, node: fx.Node, spec: InputSpec) -> None:
        self.graph.erase_node(node)
        self.inputs.remove(spec)
        self.state.pop(str(spec.target), None)
        self.constants.pop(str(spec.target), None)

    def finish(self) -> ExportedProgram:
        old = self.program
        self.graph.lint()
        module = fx.GraphModule(old.graph_module, self.graph)
        module.meta.update(old.graph_module.meta)
        signature = ExportGraphSignature(self.inputs, self.outputs)
        return ExportedProgram(
            root=module,
            graph=self.graph,
            graph_signature=signature,
            state_dict=self.state,
            range_constraints=old.range_constraints,
            module_call_graph=old.module_call_graph,
            example_inputs=old.example_inputs,
            constants=self.constants,
            verifiers=old.verifiers,
        )


def _like(new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """A parameter stays one."""
    if isinstance(old, torch.nn.Parameter):
        return torch.nn.Parameter(new, requires_grad=old.requires_grad)
    return new


def _describe(node: fx.Node, tensor: torch.Tensor) -> None:
    """Note a parameter's new shape in the graph."""
    old = node.meta["val"]
    with old.fake_mode if hasattr(old, "fake_mode") else torch.no_grad():
        node.meta["val"] = torch.empty(tensor.shape, dtype=tensor.dtype, device=old.device)


def _values(node: fx.Node) -> list[fx.Node]:
    """A call's (first) output, or each node that takes it out of what the call gives."""
    several = isinstance(node.meta.get("val"), (tuple, list))
    return [user for user in node.users if user.args[1] == 0] if several else [node]


def _set_windows(node: fx.Node, edit: SetWindows) -> None:
    if str(node.target).endswith(".padding"):  # by name: "same", "valid"
        node.target = getattr(torch.ops.aten, op_of(node)).default
    windows = edit.windows
    assert windows.heads == windows.tails, "torch pads both sides alike"
    set_argument(node, "stride", list(windows.strides))
    set_argument(node, "padding", list(windows.heads))
    set_argument(node, "dilation", list(windows.dilations))
    set_argument(node, "groups", edit.groups)


def _schema(node: fx.Node) -> list[str]:
    return [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
