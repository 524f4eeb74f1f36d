"""Modules that as a whole are one per-channel map, whoever wrote them: frozen batch norms of detection
libraries, batch norms with channels last, a layer scale.

What their calls compute says so, not their class: each call is a chain of affine maps with stored numbers,
between which data may be rearranged if it comes out as it went in. Such a module becomes `nn.Identity` if all
its maps vanish, in all its calls; its code is not otherwise touched. A chain none of whose numbers could be
rewritten is one node for the solver: together its maps go where one of them alone could not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import nn

from bnfold.fold import moves
from bnfold.fold.graph import Array, Constant, Graph, Node, Refused
from bnfold.fold.roles import Affine, Move
from bnfold.torch_graph.call import within
from bnfold.torch_graph.module.holders import Holders
from bnfold.torch_graph.module.limits import CODE
from bnfold.torch_graph.module.what_is_left import MAY_RETURN_INPUT, Calls, hooked

__all__ = ["Whole", "wholes_of"]


@dataclass(eq=False)
class Whole:
    """Such a module: its path, its class, and for each call of it the nodes of the chain."""

    path: str
    kind: str
    calls: dict[str, list[Node]]
    names: set[str]  # of all nodes that there were
    before: dict[Node, str] = field(default_factory=dict)  # why they stayed, each by itself

    @property
    def maps(self) -> list[Node]:
        """The affine nodes of all calls."""
        return [node for nodes in self.calls.values() for node in nodes if isinstance(node.role, Affine)]

    def open(self) -> None:
        """Its maps may vanish."""
        for node in self.maps:
            self.before[node] = _role(node).stay
            _role(node).stay = ""

    def close(self, why: str) -> None:
        """They may not, but for those that could before."""
        for node, before in self.before.items():
            _role(node).stay = why if before else ""

    def is_half_gone(self, folded: Collection[Node]) -> bool:
        """Some of its maps are among the folded ones, and some are not."""
        return len({node in folded for node in self.maps}) > 1


def wholes_of(module: nn.Module, graph: Graph, holders: Holders, made: Calls) -> list[Whole]:
    """All such modules of a network; `made`: the calls that it makes."""
    calls: dict[str, dict[str, list[Node]]] = defaultdict(lambda: defaultdict(list))
    for node in graph.nodes:
        inside = within(node.source)
        if inside:
            name, path = inside.popitem()
            part = holders.part(path)
            if part is not None:
                calls[holders.paths[id(part)]][name].append(node)
    found = []
    for path, by_call in calls.items():
        part = module.get_submodule(path)
        alone = path and made.plain(path) == len(by_call) and _does_nothing_else(part)
        if alone and all(map(_is_one_map, by_call.values())):
            names = {node.name for nodes in by_call.values() for node in nodes}
            kind = type(part).__name__
            chains = {}
            for number, (call, nodes) in enumerate(by_call.items()):
                chains[call] = _joined(graph, nodes, path, f"{path}@{number}" if number else path, kind)
            found.append(Whole(path, kind, chains, names))
    return found


def _joined(graph: Graph, nodes: list[Node], path: str, name: str, kind: str) -> list[Node]:
    """The chain as one node, which takes its place; as it is if numbers of it could be rewritten."""
    constants = [constant for node in nodes for constant in _constants(node)]
    if len(nodes) == 1 or not all(constant.locked for constant in constants):
        return nodes
    first, last = nodes[0], nodes[-1]
    x = next(tensor for tensor in first.inputs if tensor is not None)
    scale, shift = _compose(nodes, x.rank)
    own = replace(constants[0], store=path)  # what all calls of a batch norm have in common
    role = Affine(scale, shift, "norm", constants={"mean": (0, own)}, stay=CODE)
    one = Node(name, kind, role, [x], last.outputs, first.source)
    x.readers = [(one, 0) if reader is first else (reader, slot) for reader, slot in x.readers]
    last.outputs[0].producer = one
    graph.nodes[graph.nodes.index(first)] = one
    graph.nodes = [node for node in graph.nodes if node not in nodes]
    return [one]


def _compose(nodes: list[Node], rank: int) -> tuple[Array, Array]:
    """The scale and the shift of the whole chain; raises `Refused` if they depend on what is rearranged."""
    scale, shift = np.ones((1,) * rank), np.zeros((1,) * rank)
    for node in nodes:
        if isinstance(node.role, Affine):
            scale, shift = node.role.scale * scale, node.role.scale * shift + node.role.shift
        else:
            scale, shift = (_move(node).push(array) for array in (scale, shift))
    return scale, shift


def _constants(node: Node) -> list[Constant]:
    return [c for _, c in node.role.constants.values()] if isinstance(node.role, Affine) else []


def _move(node: Node) -> Any:
    assert isinstance(node.role, Move)
    return node.role.move


def _does_nothing_else(part: nn.Module) -> bool:
    """No hooks, and no submodules that could be called at another time, as drop-out is."""
    children = (child for child in part.modules() if child is not part)
    return not hooked(part) and all(type(child).forward is nn.Module.forward for child in children)


def _is_one_map(nodes: list[Node]) -> bool:
    """They are a chain that scales and shifts; not one batch norm, of which what_is_left.py knows more."""
    if len(nodes) == 1 and isinstance(nodes[0].role, Affine) and nodes[0].role.kind == "norm":
        return False
    first = tensor = None
    rearranged: list[Any] = []
    for node in nodes:
        role, data = node.role, [x for x in node.inputs if x is not None]
        if not isinstance(role, (Affine, Move)) or len(data) != 1 or node.op in MAY_RETURN_INPUT:
            return False
        if tensor is None:
            first = data[0]
        elif data[0] is not tensor or len(tensor.readers) > 1 or tensor.fixed:
            return False
        if isinstance(role, Move):
            _add_move(rearranged, role.move)
        tensor = node.outputs[0]
    if first is None or tensor is None or rearranged or not any(isinstance(n.role, Affine) for n in nodes):
        return False
    try:
        _compose(nodes, first.rank)
    except Refused:
        return False
    known = first.shape is not None and None not in first.shape
    return known and (first.shape, first.dtype) == (tensor.shape, tensor.dtype)


def _add_move(done: list[Any], move: Any) -> None:
    """One more move behind these; two that undo each other are none."""
    last = done[-1] if done else None
    if isinstance(move, moves.Identity):
        return
    if isinstance(last, moves.Transpose) and isinstance(move, moves.Transpose):
        both = tuple(last.perm[axis] for axis in move.perm)
        done[-1] = moves.Transpose(both)
        if both == tuple(range(len(both))):
            done.pop()
    elif isinstance(last, moves.Reshape) and isinstance(move, moves.Reshape):
        done[-1] = moves.Reshape.between(last.before, move.after)
        if last.before == move.after:
            done.pop()
    else:
        done.append(move)


def _role(node: Node) -> Affine:
    assert isinstance(node.role, Affine)
    return node.role
