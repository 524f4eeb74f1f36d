"""Which channels can only go together: torch-pruning's dependency graph, in plain data.

A group is what belongs to the output channels of one layer: those of layers that are added to it, of
depthwise convolutions and batch norms behind it, and the inputs of all that read it. Its channel i is one
channel, or several, of each.

torch-pruning follows gradients from the outputs to the parameters. What it does not see (constants, code
under `no_grad`), and what it takes for an element-wise operator though it moves channels, is found by the
caller, who compares the network before and after.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bnfold.compress.layers import Removal, sides
from bnfold.errors import UsageError, explained
from bnfold.fold.graph import Refused
from bnfold.origin import extra

__all__ = ["Group", "PruningGroups", "Member"]

_Norm = nn.modules.batchnorm._BatchNorm
_HOMOGENEOUS = ("ReluBackward", "LeakyReluBackward")
_MAKERS = (nn.modules.conv._ConvNd, nn.Linear)


@dataclass(frozen=True)
class Member:
    """One side of a layer: its channel `at[i]` belongs to channel `of[i]` of the group."""

    layer: str
    side: str
    at: tuple[int, ...]
    of: tuple[int, ...]

    def removal(self, gone: Collection[int]) -> Removal:
        """What leaves this layer with these channels of the group."""
        pairs = zip(self.at, self.of, strict=True)
        return Removal(self.layer, self.side, frozenset(at for at, of in pairs if of in gone))


@dataclass
class Group:
    """Channels that belong together.

    name: of the layer that makes most of them, the first of several. norms: its batch norms that have a
    gamma; ruling: those of them whose gamma is not divided out by the next. why: what keeps all of its
    channels, or "". blocks: of that many blocks each loses as many channels. spread: sides of layers with a
    single channel, which the network spreads over these (a gate); they are no members.
    """

    name: str
    channels: int
    members: tuple[Member, ...]
    norms: tuple[Member, ...]
    ruling: tuple[Member, ...]
    why: str = ""
    blocks: int = 1
    spread: frozenset[tuple[str, str]] = frozenset()


class PruningGroups:
    """All groups of a module, in the order of its layers.

    Args:
        module: a copy of the caller's own; it is left in eval mode and needing gradients.
        args: positional arguments to trace with.
        kwargs: keyword arguments to trace with.
        ignored: names of layers that keep all channels that they make; of a module: also those in it.

    Raises:
        UsageError: torch-pruning is not installed, or cannot follow the module.
    """

    def __init__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], ignored: Collection[str]
    ) -> None:
        try:
            import torch_pruning
        except ModuleNotFoundError as error:
            if error.name != "torch_pruning":
                raise
            raise UsageError(
                f"slimming needs torch-pruning, which knows what belongs together: {extra('compress')}"
            ) from None
        self._ops = torch_pruning.ops
        self._names = {part: name for name, part in module.named_modules()}
        self._parts = {name: part for part, name in self._names.items()}
        self._order = {name: place for place, name in enumerate(self._names.values())}
        within = tuple(f"{each}." for each in ignored)
        self._kept = {name for name in self._names.values() if f"{name}.".startswith(within)}
        self._tied = _tied(module)
        self._graph = torch_pruning.DependencyGraph()
        advice = "Slim the part of it that it can follow, or rewrite what leaves torch's gradients"
        with explained(f"torch-pruning cannot follow {type(module).__name__}", advice):
            self._build(module, args, dict(kwargs))
            self.all = sorted(self._found(), key=lambda group: self._order[group.name])
        makers = [part for part in self._names if isinstance(part, _MAKERS)]
        self.unseen = [self._names[part] for part in makers if part not in self._graph.module2node]

    def together(self, group: Group, gone: Collection[int]) -> bool:
        """Whether these channels of a group can go without others, which only a smaller group tells."""
        part = self._with(self._parts[group.name], sorted(gone))
        small = {(m.layer, m.side): frozenset(m.at) for m in self._members(part)}
        large = {(m.layer, m.side): m.removal(gone).gone for m in group.members}
        small = {key: at for key, at in small.items() if key not in group.spread}
        return small == {key: at for key, at in large.items() if at}

    def _found(self) -> Iterator[Group]:
        """From the layer with most channels down: what is spread over them, or part of them, comes later."""
        graph = self._graph
        seen = [part for part in self._names if isinstance(part, _MAKERS) and part in graph.module2node]
        done: set[str] = set()
        for root in sorted(seen, key=graph.get_out_channels, reverse=True):
            if self._names[root] not in done:
                found = self._read(self._with(root, range(graph.get_out_channels(root))))
                done |= {member.layer for member in found.members if member.side != "in"}
                done |= {layer for layer, side in found.spread if side != "in"}
                yield found

    def _with(self, root: nn.Module, channels: Collection[int]) -> Any:
        """torch-pruning's group of these output channels."""
        handler = self._graph.get_pruner_of_module(root).prune_out_channels
        return self._graph.get_pruning_group(root, handler, list(channels))

    def _build(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        def ends(made: Any) -> list[Tensor]:  # a copy of each output is an operator of its own: the end
            leaves = [leaf for leaf in pytree.tree_leaves(made) if isinstance(leaf, Tensor)]
            leaves = [leaf.clone() for leaf in leaves if leaf.requires_grad]
            if not leaves:
                raise UsageError("no output has a gradient, which is what torch-pruning follows")
            return leaves

        entered = _Entered(module, (args, kwargs)).eval()
        for value in entered.parameters():
            value.requires_grad_(value.is_floating_point() or value.is_complex())
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._graph.build_dependency(
                entered,
                args,
                forward_fn=lambda model, _: model(args, kwargs),
                output_transform=ends,
                verbose=False,
            )

    def _members(self, group: Any) -> list[Member]:
        """What of a group are layers, in their order."""
        found = []
        for item in group:
            layer = item.dep.target.module
            if layer in self._names:
                out = self._graph.is_out_channel_pruning_fn(item.dep.handler)
                into = self._graph.is_in_channel_pruning_fn(item.dep.handler)
                side = "both" if out and into else "out" if out else "in"
                found.append(Member(self._names[layer], side, tuple(item.idxs), tuple(item.root_idxs)))
        return sorted(found, key=lambda member: (self._order[member.layer], member.side))

    def _read(self, group: Any) -> Group:
        all_members, parts = self._members(group), self._parts
        spread = frozenset(
            (m.layer, m.side) for m in all_members if max(m.at) > 0 and _size(parts[m.layer], m.side) == 1
        )
        members = [member for member in all_members if (member.layer, member.side) not in spread]
        norms = [m for m in members if isinstance(norm := parts[m.layer], _Norm) and norm.weight is not None]
        root = self._names[group[0].dep.target.module]
        ruling = [norm for norm in norms if not self._divided_out(parts[norm.layer])] or norms
        found = Group(root, len(group[0].idxs), tuple(members), tuple(norms), tuple(ruling), spread=spread)
        found.why = self._why(group, found) or self._set_blocks(found)
        return found

    def _set_blocks(self, found: Group) -> str:
        """Tell a group of the convolutions in groups that its channels pass; or what is wrong with that."""
        whole = tuple(range(found.channels))
        for member in found.members:
            blocks = sides(self._parts[member.layer])[member.side].blocks
            if blocks > 1:
                if not member.at == member.of == whole:
                    return f"{member.layer} convolves in groups, and has other channels too"
                found.blocks = math.lcm(found.blocks, blocks)
        return "" if found.channels > found.blocks else "each of its channels is in a group of its own"

    def _divided_out(self, norm: nn.Module) -> bool:
        """Whether all that a batch norm's scale reaches is another one, by way of depthwise convolutions.

        gamma and beta of such a channel can be doubled without any effect: its size says nothing.
        """
        depthwise = False
        ahead = [(node, False) for node in self._graph.module2node[norm].outputs]
        done: set[tuple[Any, bool]] = set()
        while ahead:
            node, within = ahead.pop()
            if (node, within) in done:  # a layer that is called twice is one node
                continue
            done.add((node, within))
            part = node.module
            if isinstance(part, _Norm):
                if not within:
                    return False
                depthwise = True
                continue
            if isinstance(part, nn.modules.conv._ConvNd):
                if not 1 < part.groups == part.in_channels == part.out_channels or part.bias is not None:
                    return False
                within = True
            elif not _keeps_scale(node):
                return False
            ahead += [(next_, within) for next_ in node.outputs]
        return depthwise

    def _why(self, group: Any, found: Group) -> str:
        """What keeps the channels of a group, or ""."""
        for item in group:
            node = item.dep.target
            if isinstance(node.module, nn.Parameter):
                name = self._graph._param_to_name.get(node.module, "a parameter").removeprefix("module.")
                return f"{name}, which is no layer's, has these channels too"
            for kind, why in (
                (_Entry, "an input of the network has these channels too"),
                (self._ops._OutputOp, "an output of the network has these channels"),
                (self._ops._UnbindOp, "its channels are taken apart by the module's code"),
            ):
                if isinstance(node.module, kind):
                    return why
            divides = isinstance(node.module, (self._ops._SplitOp, self._ops._SliceOp))
            if divides and _of_channels(node.grad_fn):
                return "its channels are divided by the module's code (split, chunk or slice)"
        for member in found.members:
            if member.side != "in" and member.layer in self._kept:
                return "it is ignored" if member.layer == found.name else f"{member.layer} is ignored"
            if member.layer in self._tied:
                return f"{member.layer} shares a weight with {self._tied[member.layer]}"
            layer = self._parts[member.layer]
            try:
                known = member.side in sides(layer)
            except Refused as reason:
                return f"{member.layer}: {reason}"
            if not known or max(member.at) >= (_size(layer, member.side) or math.inf):
                return f"how its channels reach {member.layer} is not understood"
        if not found.norms:
            return "no batch norm has a scale for its channels"
        return "it is the only one" if found.channels == 1 else ""


class _Entry(nn.modules.batchnorm._BatchNorm):
    """A layer for torch-pruning to see where an input of the network is, and how many channels it has."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Any rank from 2 on."""


class _Entered(nn.Module):
    """A network behind an `_Entry` for each input that has channels. What it computes does not matter."""

    def __init__(self, module: nn.Module, inputs: Any) -> None:
        super().__init__()
        self.module = module
        leaves = [leaf for leaf in pytree.tree_leaves(inputs) if _has_channels(leaf)]
        self.entries = nn.ModuleList(_Entry(leaf.shape[1], device=leaf.device) for leaf in leaves)

    def forward(self, args: Any, kwargs: Any) -> Any:
        entries = iter(self.entries)

        def enter(leaf: Any) -> Any:
            return next(entries)(leaf.clone().float()).to(leaf.dtype) if _has_channels(leaf) else leaf

        given, named = pytree.tree_map(enter, (args, kwargs))
        return self.module(*given, **named)


def _has_channels(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.ndim > 1


def _keeps_scale(node: Any) -> bool:
    """Whether an operator between layers gives s times as much for s times its one input, s > 0."""
    name = str(getattr(node.module, "_grad_fn", ""))
    return len(node.inputs) == 1 and ("BatchNorm" in name or name.removesuffix("0") in _HOMOGENEOUS)


def _size(layer: nn.Module, side: str) -> int:
    """How many channels this side of a layer has; 0 if that is not told, or it works with any number."""
    try:
        sizes = sides(layer)[side].sizes
    except (Refused, KeyError):
        return 0
    return int(getattr(layer, sizes[0])) if sizes else 0


def _of_channels(operator: Any) -> bool:
    """Whether a split or slice is along axis 1; also if that is not told."""
    dim = getattr(operator, "_saved_dim", 1)
    rank = len(getattr(operator, "_saved_self_sym_sizes", ()) or ())
    dim = dim - 2**64 if dim >= 2**63 else dim  # a negative one, as autograd keeps it
    return bool((dim + rank if dim < 0 else dim) == 1 or (dim < 0 and not rank))


def _tied(module: nn.Module) -> dict[str, str]:
    """Of layers that hold the same parameter as another: that other's name."""
    holders: dict[int, list[str]] = {}
    for name, part in module.named_modules():
        for value in part._parameters.values():
            if value is not None:
                holders.setdefault(id(value), []).append(name)
    several = [names for names in holders.values() if len(set(names)) > 1]
    return {name: next(n for n in names if n != name) for names in several for name in names}
