"""What of a graph the user's own modules can follow.

In a module only parameters, buffers and submodules can change, not the code that calls them. So

1. a parameter may be rewritten, in its own shape, if all calls that read it need the same new value; one that
   is tied to another module's is untied;
2. a bias may be added where the owner of the weight has an empty place for one, and all its calls need it;
3. what the code says (bounds of a clamp, slopes, fills of a padding, numbers) stays;
4. a batch norm may vanish if all calls of its module do; what_is_left.py says what becomes of the module, and
   wholes.py finds the modules that are per-channel maps without being batch norms.

Which values calls need is known when there is a plan: `Limits.agree` then locks what they do not agree on.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.export import ExportedProgram

from bnfold.fold.edits import AddBias, Bypass, Edit, SetValue
from bnfold.fold.graph import Array, Constant, Graph, Node, Role
from bnfold.fold.roles import Affine, Clamp, Closed, Contract, Leaky, Linear, Map, Pad, Recurrent
from bnfold.torch_graph.call import given, innermost
from bnfold.torch_graph.module.holders import Holders, owner_of
from bnfold.torch_graph.module.what_is_left import Calls, mean_of

__all__ = ["CODE", "Limits", "half_gone", "unable", "unseen"]

CODE = "is written in the module's code"
_NO_PLACE = "its module has no place for a bias"
_DIFFER = "is used by several calls that need different ones, and a module has one"


class Limits:
    """Locks what a module cannot follow of the graph that was read from its functional program.

    made: the calls that the module makes. shared: what to do with a parameter that several modules hold.
    tied: these parameters, and one of their names elsewhere.
    """

    def __init__(
        self, module: nn.Module, program: ExportedProgram, graph: Graph, made: Calls, shared: str
    ) -> None:
        self.holders, self.made, self.shared = Holders(module, program), made, shared
        self.tied: dict[Constant, str] = {}
        self.uses: dict[str, list[Constant]] = defaultdict(list)  # of a parameter, one for each reading
        self.calls: dict[str, int] = {}  # how often it is read
        for node in graph.nodes:
            for constant in _constants(node):
                self._lock(node, constant)
        for name, constants in self.uses.items():
            if len(constants) != self.calls[name]:
                _lock_all(constants, f"({name}) is used by several calls, and not by all in the same way")
        self.without_bias: dict[str, list[Linear]] = defaultdict(list)  # by the name of the weight
        for node in graph.nodes:
            node.role = self._restricted(node)

    def _lock(self, node: Node, constant: Constant) -> None:
        """Say why a stored value cannot be rewritten, if so; else its name in the module that calls."""
        if constant.locked:
            return
        constant.rigid = True
        holders, tensor = self.holders, self.holders.tensor(constant.store)
        calls = [] if tensor is None else holders.readers[id(tensor)]
        if not constant.store:
            constant.locked = CODE
        elif tensor is None or not calls:
            constant.locked = "is computed from other parameters"
        else:
            places = own = holders.places[id(tensor)]
            tied = len(places) > 1
            if tied:  # what the module that makes the call holds, and its own calls
                here = holders.part(innermost(node.source))
                own = [place for place in places if place[0] is here]
                calls = [call for call in calls if holders.part(innermost(call)) is here]
            if len(own) != 1 or (tied and self.shared == "skip"):
                constant.locked = f"({constant.store}) is used by several calls, and a module has one"
                return
            if tied:
                self.tied[constant] = holders.name(next(place for place in places if place not in own))
            constant.store = holders.name(own[0])
            self.uses[constant.store].append(constant)
            self.calls[constant.store] = len(calls)

    def _restricted(self, node: Node) -> Role:
        role = node.role
        if isinstance(role, Affine) and not role.stay:
            role.stay = self._why_it_stays(node, role) if role.kind == "norm" else CODE
        if isinstance(role, Clamp):
            return Closed("has its bounds in the module's code")
        if isinstance(role, Leaky) and role.constant is None:
            return Map(shift=f"{node.op} does not pass a shift")
        if isinstance(role, Pad) and role.fill is not None:
            if role.fill != 0:
                return Closed("fills in a number that is written in the module's code")
            return Map("any", "fills in zeros, where a shift would not be seen", role.axes, x=role.x)
        if isinstance(role, Contract):
            return replace(role, bias_open=_NO_PLACE)
        if isinstance(role, Linear):
            self._look_at_bias(node, role)
        return role

    def _look_at_bias(self, node: Node, role: Linear) -> None:
        if role.bias is not None:
            if math.prod(role.bias.shape) != role.outputs:
                role.bias.locked = role.bias.locked or "is one number for several outputs"
        elif not role.bias_open:
            owner, _ = owner_of(self.holders.module, role.weight.store)
            place = role.bias_slot is not None and owner is not None and "bias" in owner._parameters
            place = place and self.made.times[self.holders.paths[id(owner)]] > 0  # its own code reads it
            if self.calls.get(role.weight.store, 1) > 1:  # in all of the calls
                place = place and self.holders.part(innermost(node.source)) is owner
            role.bias_open = "" if place and not role.weight.locked else _NO_PLACE
            self.without_bias[role.weight.store].append(role)

    def _why_it_stays(self, node: Node, role: Affine) -> str:
        """A batch norm must be able to become the identity map, at least."""
        here = self.holders.part(innermost(node.source))
        stored = [constant.store for _, constant in role.constants.values() if constant.store]
        if len(set(stored)) < len(stored):
            return "two of its parameters are one"
        for store in stored:  # not what is left out: `affine=False`
            tensor = self.holders.tensor(store)
            calls = [] if tensor is None else self.holders.readers[id(tensor)]
            if not calls:
                return "its parameters are computed from others"
            tied = len(self.holders.places[id(tensor)]) > 1
            for call in calls:
                elsewhere = tied and self.holders.part(innermost(call)) is not here
                if not elsewhere and _identity(call) != _identity(node.source):
                    return f"its {store} is used elsewhere too"
        return ""

    def agree(self, edits: Sequence[Edit]) -> bool:
        """Whether all calls of each parameter need the same of it; what they do not agree on is locked."""
        values = {
            edit.old: edit.value
            for edit in edits
            if isinstance(edit, SetValue) and edit.old and not _is_as_stored(edit.value, edit.old)
        }
        biases = {edit.node.role: edit.value for edit in edits if isinstance(edit, AddBias)}
        agreed = True
        for name, constants in self.uses.items():
            if not _all_same(values, constants):
                _lock_all(constants, f"({name}) {_DIFFER}")
                agreed = False
        for roles in self.without_bias.values():
            if not _all_same(biases, roles):
                for role in roles:
                    role.bias_open = f"its bias {_DIFFER}"
                agreed = False
        return agreed


def _lock_all(constants: Sequence[Constant], why: str) -> None:
    for constant in constants:
        constant.locked = why


def _is_as_stored(value: Array, constant: Constant) -> bool:
    """Changes that cancelled each other ask for what is there already."""
    return np.array_equal(np.ravel(value), np.ravel(constant.load()))


def _all_same(values: Mapping[Any, Array], users: Sequence[Any]) -> bool:
    """All of these get one value, or none does."""
    given = [values.get(user) for user in users]
    first = given[0]
    if first is None:
        return all(value is None for value in given)
    return all(value is not None and np.array_equal(value.ravel(), first.ravel()) for value in given)


def _constants(node: Node) -> Iterator[Constant]:
    """What a node reads of what is stored."""
    yield from (t.constant for t in node.inputs if t is not None and t.constant is not None)
    if isinstance(node.role, Affine):
        yield from (constant for _, constant in node.role.constants.values())
    if isinstance(node.role, Recurrent):
        for weight, _, bias, _ in node.role.directions:
            yield from (constant for constant in (weight, bias) if constant is not None)
        return
    for name in ("weight", "bias", "scale", "constant"):
        constant = getattr(node.role, name, None)
        if isinstance(constant, Constant):
            yield constant


def _identity(call: fx.Node) -> tuple[Any, ...]:
    """What the calls of one batch norm have in common: one identity map serves them all."""
    stated = given(call)
    names = ("running_mean", "running_var", "weight", "bias", "eps")
    return call.target, *(stated.get(name) for name in names)


def unseen(module: nn.Module, program: ExportedProgram) -> list[str]:
    """Batch norm modules that no call of the program belongs to: they may share a layer with others."""
    holders = Holders(module, program)
    return [
        path
        for path, part in module.named_modules()
        if isinstance(mean := part._buffers.get("running_mean"), torch.Tensor)
        and not holders.readers[id(mean)]
        and not part.training
    ]


def half_gone(graph: Graph, folded: Sequence[Node]) -> set[Node]:
    """Folds that cannot be: another call of the same batch norm stays."""
    norms = [node for node in graph.nodes if isinstance(node.role, Affine) and node.role.kind == "norm"]
    gone = set(folded)
    kept = {mean_of(node) for node in norms if node not in gone}
    return {node for node in norms if node in gone and mean_of(node) in kept}


def unable(edits: Sequence[Edit]) -> list[Node]:
    """Nodes of which the plan asks what only a graph could do."""
    return [
        edit.node
        for edit in edits
        if not isinstance(edit, (AddBias, Bypass))
        and (not isinstance(edit, SetValue) or edit.old is None or isinstance(edit.key, str))
    ]
