"""A plan for the user's own modules: what of a graph they can follow, and the plan applied to them.

In a module only parameters, buffers and submodules can change, not the code that calls them. So

1. a parameter may be rewritten if one call uses it, as it is stored; one that is tied to another module's is
   untied;
2. a bias may be added where the owner of the weight has an empty place for one;
3. what the code says (bounds of a clamp, slopes, fills of a padding, numbers) stays;
4. a batch norm may vanish if all calls of its module do; what_is_left.py says what becomes of the module.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.export import ExportedProgram

from bnfold.fold.edits import AddBias, Bypass, Edit, SetValue
from bnfold.fold.graph import Constant, Graph, Node, Role
from bnfold.fold.roles import Affine, Clamp, Closed, Leaky, Linear, Map, Pad
from bnfold.torch_graph.arrays import to_tensor
from bnfold.torch_graph.call import given, innermost
from bnfold.torch_graph.module.holders import Holders, owner_of, tensors
from bnfold.torch_graph.module.what_is_left import Calls, Replacement, mean_of, path_of, what_is_left

__all__ = ["apply", "half_gone", "restrict", "unable", "unseen", "written"]

_CODE = "is written in the module's code"


@dataclass
class Limits:
    """Who holds what in a module, and which parameters a plan would have to untie."""

    holders: Holders
    made: Calls
    shared: str
    tied: dict[Constant, str] = field(default_factory=dict)


def restrict(
    module: nn.Module, program: ExportedProgram, graph: Graph, made: Calls, shared: str
) -> dict[Constant, str]:
    """Lock what the module cannot follow; `graph` was read from `program`, its functional export, and `made`
    are the calls that it makes.

    Returns:
        The parameters that other modules hold as well, and one of their names there.
    """
    limits = Limits(Holders(module, program), made, shared)
    for node in graph.nodes:
        for tensor in node.inputs:
            if tensor is not None and tensor.constant is not None:
                _lock(limits, node, tensor.constant)
        node.role = _restricted(limits, node)
    return limits.tied


def _restricted(limits: Limits, node: Node) -> Role:
    role = node.role
    if isinstance(role, Affine):
        if role.stay:
            return role
        role.stay = _why_it_stays(limits, node) if role.kind == "norm" else _CODE
    for constant in _constants(role):
        _lock(limits, node, constant)
    if isinstance(role, Clamp):
        return Closed("has its bounds in the module's code")
    if isinstance(role, Leaky) and role.constant is None:
        return Map(shift=f"{node.op} does not pass a shift")
    if isinstance(role, Pad) and role.fill is not None:
        if role.fill != 0:
            return Closed("pads with a number that is written in the module's code")
        return Map("any", "pads with zeros, where a shift would not be seen", role.axes)
    if isinstance(role, Linear) and role.bias is None and not role.bias_open:
        owner, _ = owner_of(limits.holders.module, role.weight.store)
        place = role.bias_slot is not None and owner is not None and "bias" in owner._parameters
        place = place and limits.made.times[limits.holders.paths[id(owner)]] > 0  # its own code reads it
        role.bias_open = "" if place and not role.weight.locked else "its module has no place for a bias"
    return role


def _constants(role: Role) -> Iterator[Constant]:
    if isinstance(role, Affine):
        yield from (constant for _, constant in role.constants.values())
    for name in ("weight", "bias", "scale", "constant"):
        constant = getattr(role, name, None)
        if isinstance(constant, Constant):
            yield constant


def _lock(limits: Limits, node: Node, constant: Constant) -> None:
    """Say why a stored value cannot be rewritten, if so; else its name in the module that makes the call."""
    if constant.locked:
        return
    holders, tensor = limits.holders, limits.holders.tensor(constant.store)
    calls = [] if tensor is None else holders.readers[id(tensor)]
    if not constant.store:
        constant.locked = _CODE
    elif tensor is None or not calls:
        constant.locked = "is computed from other parameters"
    else:
        places = own = holders.places[id(tensor)]
        tied = len(places) > 1
        if tied:  # what the module that makes the call holds, and its own calls
            here = holders.part(innermost(node.source))
            own = [place for place in places if place[0] is here]
            calls = [call for call in calls if holders.part(innermost(call)) is here]
        if len(own) != 1 or len(calls) != 1 or (tied and limits.shared == "skip"):
            constant.locked = f"({constant.store}) is used by several calls, and a module has one"
            return
        if tied:
            limits.tied[constant] = holders.name(next(place for place in places if place not in own))
        constant.store = holders.name(own[0])


def _why_it_stays(limits: Limits, node: Node) -> str:
    """A batch norm must be able to become the identity map, at least."""
    role: Affine = node.role  # type: ignore[assignment]
    here = limits.holders.part(innermost(node.source))
    for _, constant in role.constants.values():
        if not constant.store:
            continue  # left out: `affine=False`
        tensor = limits.holders.tensor(constant.store)
        calls = [] if tensor is None else limits.holders.readers[id(tensor)]
        if not calls:
            return "its parameters are computed from others"
        tied = len(limits.holders.places[id(tensor)]) > 1
        for call in calls:
            elsewhere = tied and limits.holders.part(innermost(call)) is not here
            if not elsewhere and _identity(call) != _identity(node.source):
                return f"its {constant.store} is used elsewhere too"
    return ""


def _identity(call: fx.Node) -> tuple[Any, ...]:
    """What the calls of one batch norm have in common: one identity map serves them all."""
    stated = given(call)
    return call.target, stated.get("running_mean"), stated.get("eps")


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


def written(edits: Sequence[Edit]) -> set[str]:
    """The parameters and buffers that `apply` writes, or whose likes it makes."""
    names: set[str] = set()
    for edit in edits:
        role: Any = edit.node.role
        if isinstance(edit, SetValue) and edit.old is not None:
            names.add(edit.old.store)
        elif isinstance(edit, AddBias):
            names.add(role.weight.store)
        elif isinstance(edit, Bypass):
            names |= {constant.store for _, constant in role.constants.values()}
    return names


def apply(module: nn.Module, edits: Sequence[Edit], replacements: Mapping[str, Replacement]) -> None:
    """Rewrite a module in place. replacements: of batch norms, by the name of the running mean."""
    bypassed: dict[str, Node] = {}
    held = Counter(id(tensor) for _, _, tensor in tensors(module))
    tied = {key for key, count in held.items() if count > 1}
    for edit in edits:
        if isinstance(edit, SetValue):
            assert edit.old is not None
            _put(module, edit.old.store, edit.value, tied)
        elif isinstance(edit, AddBias):
            role: Any = edit.node.role
            owner, name = owner_of(module, role.weight.store)
            assert owner is not None
            like = getattr(owner, name)
            owner.bias = nn.Parameter(to_tensor(edit.value, like), requires_grad=like.requires_grad)
        elif isinstance(edit, Bypass):
            bypassed.setdefault(mean_of(edit.node), edit.node)
    for mean, node in bypassed.items():
        replacement = replacements[mean]
        _make_identity_map(module, node, tied)  # in any case: somebody may hold it outside of the module
        if replacement is not None:
            _take_out(module, path_of(node), replacement)


def _put(module: nn.Module, target: str, array: Any, tied: set[int]) -> None:
    """New numbers for a parameter or buffer; what was tied to it keeps the old ones."""
    owner, name = owner_of(module, target)
    assert owner is not None
    old: torch.Tensor = getattr(owner, name)
    new = to_tensor(array, old).reshape(old.shape)
    if id(old) not in tied and not _overlaps(old):
        with torch.no_grad():
            old.copy_(new)  # its strides stay, and whoever holds it sees the new numbers
    elif isinstance(old, nn.Parameter):
        owner._parameters[name] = nn.Parameter(new, requires_grad=old.requires_grad)
    else:
        owner._buffers[name] = new


def _overlaps(tensor: torch.Tensor) -> bool:
    """Several entries lie in one place, as in an expanded tensor."""
    return any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _take_out(module: nn.Module, path: str, replacement: tuple[str, ...] | str) -> None:
    """Replace a batch norm, wherever it is registered, by what is left of it."""
    gone = module.get_submodule(path)
    new = what_is_left(gone, replacement)
    for parent in list(module.modules()):
        for name, child in list(parent._modules.items()):
            if child is gone:
                parent._modules[name] = new


def _make_identity_map(module: nn.Module, node: Node, tied: set[int]) -> None:
    """Mean and bias are 0; var = 1 and gamma = sqrt(1 + eps), or var = 1 - eps where there is no gamma."""
    role: Affine = node.role  # type: ignore[assignment]
    var = 1.0 if role.constants["gamma"][1].store else 1.0 - role.eps
    values = {"gamma": np.sqrt(1 + role.eps), "beta": 0.0, "mean": 0.0, "var": var}
    for key, (_, constant) in role.constants.items():
        if constant.store:
            _put(module, constant.store, np.full(constant.shape, values[key]), tied)
