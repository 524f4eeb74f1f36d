"""A plan for the user's own modules: what of a graph they can follow, and the plan applied to them.

In a module only parameters, buffers and submodules can change, not the code that calls them. So

1. a parameter may be rewritten if one call uses it, as it is stored; one that is tied to another module's is
   untied;
2. a bias may be added where the owner of the weight has an empty place for one;
3. what the code says (bounds of a clamp, slopes, fills of a padding, numbers) stays;
4. a batch norm may vanish if all calls of its module do; eager.py says what then becomes of the module.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import fx, nn
from torch.export import ExportedProgram

from bnfold.fold.graph import (
    AddBias,
    Affine,
    Bypass,
    Clamp,
    Closed,
    Constant,
    Edit,
    Graph,
    Leaky,
    Linear,
    Map,
    Node,
    Pad,
    Role,
    SetValue,
)
from bnfold.torch_graph.arrays import to_tensor
from bnfold.torch_graph.call import innermost
from bnfold.torch_graph.eager import Fate, mean_of, path_of, what_is_left

__all__ = ["apply", "half_gone", "restrict", "unable"]

_CODE = "is written in the module's code"


@dataclass
class Limits:
    """A module, what its graph uses, and which parameters it would have to untie."""

    module: nn.Module
    users: dict[str, list[fx.Node]]
    shared: str
    tied: dict[Constant, str] = field(default_factory=dict)


def restrict(module: nn.Module, program: ExportedProgram, graph: Graph, shared: str) -> dict[Constant, str]:
    """Lock what the module cannot follow; `graph` was read from `program`, its functional export.

    Returns:
        The parameters that have the memory of another one, and its name.
    """
    names = {str(spec.target): spec.arg.name for spec in program.graph_signature.input_specs if spec.target}
    readers = {node.name: list(node.users) for node in program.graph.nodes if node.op == "placeholder"}
    limits = Limits(module, {target: readers[name] for target, name in names.items()}, shared)
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
        if role.kind != "norm":
            role.stay = _CODE
        else:
            role.stay = _why_it_stays(limits, node)
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
        owner, _ = _owner(limits.module, role.weight.store)
        place = role.bias_slot is not None and owner is not None and "bias" in owner._parameters
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
    calls = limits.users.get(constant.store, [])
    if not constant.store:
        constant.locked = _CODE
    elif _owner(limits.module, constant.store)[0] is None or not calls:
        constant.locked = "is computed from other parameters"
    elif len(calls) > 1:
        where = innermost(node.source)
        own = f"{where}.{constant.store.rpartition('.')[2]}"
        alone = sum(innermost(call) == where for call in calls) == 1
        if alone and limits.shared != "skip" and _same(limits.module, own, constant.store):
            limits.tied[constant] = constant.store
            constant.store = own
        else:
            constant.locked = f"({constant.store}) is used by several calls, and a module has one"


def _same(module: nn.Module, a: str, b: str) -> bool:
    """Both names mean the same tensor."""
    (owner, name), (other, known) = _owner(module, a), _owner(module, b)
    return owner is not None and other is not None and getattr(owner, name) is getattr(other, known)


def _owner(module: nn.Module, target: str) -> tuple[nn.Module | None, str]:
    """The submodule that holds a parameter or buffer, and its name there; None if there is none."""
    path, _, name = target.rpartition(".")
    try:
        owner = module.get_submodule(path)
    except AttributeError:
        return None, name
    return (owner if name in owner._parameters or name in owner._buffers else None), name


def _why_it_stays(limits: Limits, node: Node) -> str:
    """A batch norm must be able to become the identity map, at least."""
    role: Affine = node.role  # type: ignore[assignment]
    for _, constant in role.constants.values():
        if not constant.store:
            continue  # left out: `affine=False`
        if _owner(limits.module, constant.store)[0] is None or constant.store not in limits.users:
            return "its parameters are computed from others"
        if any(call.target is not node.source.target for call in limits.users[constant.store]):
            return f"its {constant.store} is used elsewhere too"
    return ""


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


def apply(module: nn.Module, edits: Sequence[Edit], fates: Mapping[str, Fate]) -> None:
    """Rewrite a module in place. `fates`: what becomes of a batch norm, by the name of its running mean."""
    bypassed: dict[str, Node] = {}
    for edit in edits:
        if isinstance(edit, SetValue):
            assert edit.old is not None
            _put(module, edit.old.store, edit.value)
        elif isinstance(edit, AddBias):
            role: Any = edit.node.role
            owner, name = _owner(module, role.weight.store)
            assert owner is not None
            like = getattr(owner, name)
            owner.bias = nn.Parameter(to_tensor(edit.value, like), requires_grad=like.requires_grad)
        elif isinstance(edit, Bypass):
            bypassed.setdefault(mean_of(edit.node), edit.node)
    for mean, node in bypassed.items():
        left = fates[mean]
        if left is None:
            _make_identity_map(module, node)
        else:
            _take_out(module, path_of(node), left)


def _put(module: nn.Module, target: str, array: Any) -> None:
    """New numbers for a parameter or buffer: a new object, so that what was tied to it keeps the old ones."""
    owner, name = _owner(module, target)
    assert owner is not None
    old = getattr(owner, name)
    new = to_tensor(array, old).reshape(old.shape)
    if isinstance(old, nn.Parameter):
        owner._parameters[name] = nn.Parameter(new, requires_grad=old.requires_grad)
    else:
        owner._buffers[name] = new


def _take_out(module: nn.Module, path: str, fate: tuple[str, ...] | str) -> None:
    """Replace a batch norm, wherever it is registered, by what is left of it."""
    gone = module.get_submodule(path)
    new = what_is_left(gone, fate)
    for parent in list(module.modules()):
        for name, child in list(parent._modules.items()):
            if child is gone:
                parent._modules[name] = new


def _make_identity_map(module: nn.Module, node: Node) -> None:
    """Mean and bias are 0; var = 1 and gamma = sqrt(1 + eps), or var = 1 - eps where there is no gamma."""
    role: Affine = node.role  # type: ignore[assignment]
    scaled = bool(role.constants["gamma"][1].store)
    values = {
        "gamma": np.sqrt(1 + role.eps),
        "beta": 0.0,
        "mean": 0.0,
        "var": 1.0 if scaled else 1.0 - role.eps,
    }
    for key, (_, constant) in role.constants.items():
        if constant.store:
            _put(module, constant.store, np.full(constant.shape, values[key]))
