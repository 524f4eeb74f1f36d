"""What became of a model's tensors, by name, over all that was done to it: a certificate in the making."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from operator import or_
from typing import Protocol

import numpy as np

from bnfold.certificate import Certificate, Image, Key
from bnfold.fold.claims import Claims
from bnfold.fold.edits import Edit, SetValue
from bnfold.fold.graph import Array, Graph, Tensor
from bnfold.fold.roles import Affine

__all__ = ["Ledger", "Place"]

ROUNDING = 2.0**-23  # of a stored float32, and a little more


class Place(Protocol):
    """Where a tensor is in a model, before and after edits."""

    @property
    def scope(self) -> str:
        """As certificates call it."""

    @property
    def name(self) -> str:
        """Its name by now."""

    @property
    def alive(self) -> bool:
        """Whether it is still there."""


class Ledger:
    """images: what is claimed of the original's tensors that are no longer what they were, under their names.
    rounds: how often edits were carried out, and numbers rounded. kept: by the output of a map whose numbers
    have changed, and were rounded, in which rounds (bits): if it goes later, they are a part of what stays.
    """

    def __init__(self) -> None:
        self.images: dict[Key, Image | None] = {}
        self.rounds = 0
        self.kept: dict[Key, int] = {}
        self.originals: frozenset[Key] = frozenset()  # all tensors of the first graph

    def place_of(self, tensor: Tensor) -> Place | None:
        """Where a tensor is; None for what no certificate speaks of."""
        raise NotImplementedError

    def certificate(self, premises: Mapping[str, tuple[Array, Array]]) -> Certificate:
        """What is known by now. premises: what inputs keep to."""
        return Certificate(self.images, dict(premises), rounds=max(self.rounds, 1))

    def changes(self, key: Key) -> bool:
        """Whether a tensor of the original is not there any more under its name, with its values."""
        image = self.images.get(key, Image(key[1]))
        return image is None or image.name != key[1] or not image.plain

    def watch(self, graph: Graph, claims: Claims, edits: Sequence[Edit] = ()) -> Callable[[], None]:
        """Note where the tensors of a graph are, before edits are carried out.

        Args:
            graph: as it is.
            claims: what becomes of its tensors.
            edits: that will be carried out.

        Returns:
            What notes, when they are, where they are then.
        """
        places = {tensor: at for tensor in graph.tensors if (at := self.place_of(tensor)) is not None}
        keys = {tensor: (place.scope, place.name) for tensor, place in places.items()}

        self.originals = self.originals or frozenset(keys.values())
        nodes = {edit.node for edit in edits if isinstance(edit, SetValue)}
        maps = [node for node in nodes if isinstance(node.role, Affine)]
        changed = [tensor for node in maps for tensor in node.outputs if tensor in places]

        def after() -> None:
            made: dict[Key, Image | None] = {}
            lost = (key for tensor, key in keys.items() if not places[tensor].alive)
            rounds = reduce(or_, (self.kept.get(key, 0) for key in lost), 1 << self.rounds)
            for tensor, key in keys.items():
                claim = claims.get(tensor)
                place = places[tensor]
                if claim is not None and not place.alive and claim.tensor in places:
                    place = places[claim.tensor]
                if (claim is None and tensor in claims) or not place.alive:
                    made[key] = None
                elif claim is not None:
                    gone = claim.tensor is not tensor  # what its node did, others do from now on
                    scaled, moved = (gone or bool(np.any(a)) for a in (np.subtract(claim.p, 1), claim.q))
                    moved = moved or claim.cut is not None  # into the biases of what reads it
                    bits = rounds * scaled, rounds * moved
                    made[key] = Image(place.name, claim.p, claim.q, claim.decoded, claim.cut, *bits)
                elif place.name != key[1]:
                    made[key] = Image(place.name)
            self._add(made)
            for tensor in changed:
                key = keys[tensor][0], places[tensor].name
                self.kept[key] = self.kept.get(key, 0) | rounds
            self.rounds += 1

        return after

    def _add(self, made: dict[Key, Image | None]) -> None:
        """Claims about the model as it is now become claims about the original."""
        new = {key: image for key, image in made.items() if key not in self.images and key in self.originals}
        self.images = followed(self.images, made) | new


def followed(images: Mapping[Key, Image | None], made: Mapping[Key, Image | None]) -> dict[Key, Image | None]:
    """What is claimed of the original's tensors, after those of a model that was made of it have changed.

    images: by the original's tensor. made: by the tensor of that model.
    """
    return {
        key: image if image is None else _then(image, made.get((key[0], image.name), Image(image.name)))
        for key, image in images.items()
    }


def _then(first: Image, second: Image | None) -> Image | None:
    """One claim behind another."""
    if second is None or (first.cut is not None and not second.plain):
        return None
    scaled, moved = first.scaled | second.scaled, first.moved | second.moved
    if second.plain:
        return replace(first, name=second.name, scaled=scaled, moved=moved)
    if first.plain:
        return replace(second, scaled=scaled, moved=moved)
    if first.decoded != second.decoded or second.cut is not None:
        return None
    outer, inner = (first, second) if first.decoded else (second, first)
    p, inside = np.multiply(outer.p, inner.p), np.multiply(outer.p, inner.q)
    q = inside + outer.q
    # A bias that was stored, and has gone on: what is left of it is what storing it has rounded.
    q = np.where(np.abs(q) <= ROUNDING * (np.abs(inside) + np.abs(outer.q)), 0.0, q)
    return Image(second.name, p, q, first.decoded, None, scaled, moved)
