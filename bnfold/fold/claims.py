"""What a plan says became of each tensor: what stands for it now, and how the two differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from bnfold.certificate import Cut
from bnfold.fold.carry.spread import State
from bnfold.fold.graph import Array, Graph, Node, Tensor
from bnfold.fold.roles import Affine

__all__ = ["Claim", "Claims", "of_fold", "of_merge"]


@dataclass(frozen=True, eq=False, slots=True)
class Claim:
    """t' = p*t + q, or if `decoded` t = p*t' + q, where t' is what the new model has under `tensor`.

    tensor: the tensor itself, or, if the node that made it is gone, the one that stands for it. p, q:
    broadcast against it. cut: the channels that are gone.
    """

    tensor: Tensor
    p: Array | float = 1.0
    q: Array | float = 0.0
    decoded: bool = False
    cut: Cut | None = None


Claims: TypeAlias = (
    "Mapping[Tensor, Claim | None]"  # None: nothing stands for it. Not named: it is what it was
)


def of_fold(graph: Graph, state: State) -> Claims:
    """The changes that were committed, and what stands for the outputs of nodes that vanish."""
    claims: dict[Tensor, Claim | None] = {}
    for tensor in graph.tensors:
        changed = tensor in state.p or tensor in state.q
        stands = _behind(tensor, state)
        if tensor in state.u or tensor in state.v:
            claims[tensor] = Claim(stands, state.u.get(tensor, 1.0), state.v.get(tensor, 0.0), True)
        elif changed or stands is not tensor:
            claims[tensor] = Claim(stands, state.p.get(tensor, 1.0), state.q.get(tensor, 0.0))
    return claims


def _behind(tensor: Tensor, state: State) -> Tensor:
    """What a tensor is the output of, where affine nodes have vanished."""
    while (node := tensor.producer) in state.gone and node is not None and isinstance(node.role, Affine):
        tensor = node.at(node.role.x)
    return tensor


def of_merge(root: Node, hosts: Iterable[Node]) -> Claims:
    """Hosts give another sum than before. What the root gave, a single host gives, or a node still."""
    hosts = tuple(hosts)
    claims: dict[Tensor, Claim | None] = {tensor: None for host in hosts for tensor in host.outputs}
    claims[root.outputs[0]] = Claim(hosts[0].outputs[0])
    return claims
