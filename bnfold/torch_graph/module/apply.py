"""A plan carried out on the user's own modules; limits.py says what of a graph they can follow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from bnfold.fold.edits import AddBias, Bypass, Edit, SetValue
from bnfold.fold.graph import Node
from bnfold.fold.roles import Affine
from bnfold.torch_graph.arrays import to_tensor
from bnfold.torch_graph.module.holders import owner_of, tensors
from bnfold.torch_graph.module.what_is_left import Replacement, mean_of, path_of, what_is_left

__all__ = ["apply", "written"]


def written(edits: Sequence[Edit]) -> set[str]:
    """The parameters and buffers that `apply` writes, or whose likes it makes."""
    names: set[str] = set()
    for edit in edits:
        role: Any = edit.node.role
        if isinstance(edit, SetValue) and edit.old is not None:
            names.add(edit.old.store)
        elif isinstance(edit, AddBias):
            names.add(role.weight.store)
        elif isinstance(edit, Bypass) and isinstance(role, Affine):  # some become identity maps
            names |= {constant.store for _, constant in role.constants.values()}
    return names


def apply(
    module: nn.Module,
    edits: Sequence[Edit],
    replacements: Mapping[str, Replacement],
    wholes: Mapping[Node, str],
) -> None:
    """Rewrite a module in place.

    Args:
        module: the user's, or a copy of it.
        edits: that it can follow.
        replacements: of batch norms, by the name of the running mean.
        wholes: the paths of the modules that become the identity, by the nodes that vanish with them.
    """
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
        elif isinstance(edit, Bypass) and edit.node not in wholes:
            bypassed.setdefault(mean_of(edit.node), edit.node)
    for mean, node in bypassed.items():
        replacement = replacements[mean]
        _make_identity_map(module, node, tied)  # in any case: somebody may hold it outside of the module
        if replacement is not None:
            _take_out(module, path_of(node), replacement)
    for path in dict.fromkeys(wholes.values()):
        gone = module.get_submodule(path)
        _take_out(module, path, ())
        _make_identity(gone)  # somebody may hold it outside of the module


def _make_identity(part: nn.Module) -> None:
    """The same object, as a module that gives what it is given."""
    for held in (part._parameters, part._buffers, part._modules):
        held.clear()
    part.__class__ = nn.Identity


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
        # not into `_parameters`: nn.LSTM keeps a list of its own
        setattr(owner, name, nn.Parameter(new, requires_grad=old.requires_grad))
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
