"""What became of a model's tensors, by name, over all that was done to it: a certificate in the making."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from bnfold.certificate import Certificate, Image, Key
from bnfold.fold.claims import Claims
from bnfold.fold.graph import Graph, Tensor
from bnfold.onnx_graph.run.input_ranges import Range
from bnfold.onnx_graph.site import Scope, Value

__all__ = ["Ledger"]

ROUNDING = 2.0**-23  # of a stored float32, and a little more


class Ledger:
    """images: what is claimed of the original's tensors that are no longer what they were, under their names.
    rounds: how often edits were carried out, and numbers rounded.
    """

    def __init__(self) -> None:
        self.images: dict[Key, Image | None] = {}
        self.rounds = 0
        self.originals: frozenset[Key] = frozenset()  # all tensors of the first graph

    def certificate(self, premises: Mapping[str, Range]) -> Certificate:
        """What is known by now. premises: what inputs keep to."""
        return Certificate(self.images, dict(premises), rounds=max(self.rounds, 1))

    def changes(self, key: Key) -> bool:
        """Whether a tensor of the original is not there any more under its name, with its values."""
        image = self.images.get(key, Image(key[1]))
        return image is None or image.name != key[1] or not image.plain

    def watch(self, graph: Graph, claims: Claims) -> Callable[[], None]:
        """Note where the tensors of a graph are, before edits are carried out.

        Returns:
            What notes, when they are, where they are then.
        """
        values = {tensor: value for tensor in graph.tensors if (value := _value(tensor)) is not None}
        keys = {tensor: (path(value.scope), value.name) for tensor, value in values.items()}

        self.originals = self.originals or frozenset(keys.values())

        def after() -> None:
            made: dict[Key, Image | None] = {}
            for tensor, key in keys.items():
                claim = claims.get(tensor)
                value = values[tensor]
                if claim is not None and not _alive(value) and claim.tensor in values:
                    value = values[claim.tensor]
                if (claim is None and tensor in claims) or not _alive(value):
                    made[key] = None
                elif claim is not None:
                    gone = claim.tensor is not tensor  # what its node did, others do from now on
                    scaled, moved = (gone or bool(np.any(a)) for a in (np.subtract(claim.p, 1), claim.q))
                    moved = moved or claim.cut is not None  # into the biases of what reads it
                    bits = scaled << self.rounds, moved << self.rounds
                    made[key] = Image(value.name, claim.p, claim.q, claim.decoded, claim.cut, *bits)
                elif value.name != key[1]:
                    made[key] = Image(value.name)
            self._add(made)
            self.rounds += 1

        return after

    def _add(self, made: dict[Key, Image | None]) -> None:
        """Claims about the model as it is now become claims about the original."""
        known = self.images
        self.images = {
            key: image if image is None else _then(image, made.get((key[0], image.name), Image(image.name)))
            for key, image in known.items()
        }
        self.images |= {key: made[key] for key in made if key not in known and key in self.originals}


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


def path(scope: Scope) -> str:
    """What a certificate calls a scope; see bnfold/certificate.py."""
    if scope.owner is None or scope.parent is None:
        return ""
    owner = scope.owner
    stem = next((name for name in owner.node.output if name), "")
    return f"{path(scope.parent)}{stem}:{(owner.bodies or []).index(scope)}/"


def _value(tensor: Tensor) -> Value | None:
    """What a node of the graph, or of a body in it, makes; functions are not told apart by their calls."""
    if tensor.producer is None or tensor.constant is not None:
        return None
    value: Value | None = tensor.producer.source.outputs[-1 - tensor.slot]
    return None if value is None or value.scope.in_function else value


def _alive(value: Value) -> bool:
    return value.scope.values.get(value.name) is value
