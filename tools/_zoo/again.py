"""Proofs of many folded models that differ at a few nodes each, of one original with one certificate.

A claim is decided by a region of each model. Where no node of the folded model that its decision has looked
at is another one than in the right fold, it is what it was there, and is not decided again: all else is what
`bnfold.prove` does.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from bnfold.certificate import Certificate, Image
from bnfold.onnx_graph.file.loaded import load
from bnfold.proof.claims import Held
from bnfold.proof.decide import Prover
from bnfold.proof.graph import FileNode, Model
from bnfold.proof.known import KnownOfFile
from bnfold.proof.operator import Array, Undecided, wide
from bnfold.proof.result import Proof
from bnfold.proof.scope import Node, Scope, same_bits
from bnfold.proof.witness import heard

__all__ = ["Again"]


class Again:
    """An original, and the right fold of it. right: its proof."""

    def __init__(self, original: onnx.ModelProto, folded: onnx.ModelProto, certificate: Certificate) -> None:
        self._a, self._b = Model(load(original), certificate.frozen), Model(load(folded)).main
        self._known = KnownOfFile(self._a, None, 0, certificate.premises)
        self._certificate = certificate
        self._values: list[dict[str, Array]] = []
        self._first = self._prover(self._b)
        self.right = heard(self._first.run(), self._known, load(folded), certificate)

    @property
    def original(self) -> Scope:
        return self._a.main

    def _prover(self, b: Scope, before: _Looking | None = None) -> _Looking:
        rng = np.random.default_rng(0)
        prover = _Looking(self._a.main, b, self._known, self._certificate, rng)
        prover.before, prover.changed = before, self._changed(b)
        return prover

    def proof(self, folded: onnx.ModelProto) -> Proof:
        """Of a model whose nodes have the outputs of the right fold's.

        Raises:
            ModelError: it is damaged.
        """
        loaded = load(folded)
        b = Model(loaded).main
        return heard(self._prover(b, self._first).run(), self._known, loaded, self._certificate)

    def _changed(self, b: Scope) -> set[str]:
        return {_first(node) for node in b.nodes if not _same(node, b, self._b)}

    def outputs(self, folded: onnx.ModelProto, feeds: Sequence[Mapping[str, Array]]) -> list[list[Array]]:
        """In float64, of each feed: only what depends on a change is computed anew.

        Raises:
            Undecided: it cannot be computed.
        """
        if not self._values:
            self._values = [_values(self._b, feed, {}, None) for feed in feeds]
        b = Model(load(folded)).main
        changed, found = self._changed(b), []
        for before, feed in zip(self._values, feeds, strict=True):
            values = {**before, **_values(b, feed, before, changed)}
            found.append([values[name] if name in values else _constant(b, name) for name in b.outputs])
        return found


def _values(
    b: Scope, feed: Mapping[str, Array], before: Mapping[str, Array], changed: Collection[str] | None
) -> dict[str, Array]:
    """What differs from `before`, of tensors behind the changed nodes. changed: None is all."""
    made: dict[str, Array] = {} if changed is not None else {k: wide(v) for k, v in feed.items()}
    for node in b.nodes:
        if changed is not None and _first(node) not in changed and not any(n in made for n in node.inputs):
            continue
        if all(b.constant(name) is not None for name in node.outputs if name):
            continue
        if node.control or node.random:
            raise Undecided(f"{node.name} cannot be computed by itself")
        given = [
            None if not name else made[name] if name in made else before.get(name) for name in node.inputs
        ]
        given = [_constant(b, n) if n and v is None else v for n, v in zip(node.inputs, given, strict=True)]
        outputs, _ = node.operator.run_wide(given)
        if any(isinstance(value, list) for value in outputs):
            raise Undecided("a list of tensors")
        pairs = zip(node.outputs, outputs, strict=False)
        made |= {name: value for name, value in pairs if name and not _equal(before.get(name), value)}
    return made


def _equal(before: Array | None, value: Array) -> bool:
    """The same numbers: nobody behind it can tell."""
    return before is not None and np.array_equal(before, value, equal_nan=value.dtype.kind == "f")


def _constant(b: Scope, name: str) -> Array:
    value = b.constant(name)
    if value is None:
        raise Undecided(f"{name} is not known")
    return wide(value)


def _first(node: Node) -> str:
    return next(filter(None, node.outputs), "")


def _same(node: Node, b: Scope, before: Scope) -> bool:
    """Whether a node is what it was, and so are its constants."""
    place = _first(node)
    if place not in before.made:
        return False
    old = before.made[place][0]
    assert isinstance(node, FileNode)
    assert isinstance(old, FileNode)
    if node.proto != old.proto:
        return False
    for name in node.reads():
        new, was = b.constant(name), before.constant(name)
        if (new is None) != (was is None) or (
            new is not None and was is not None and not same_bits(new, was)
        ):
            return False
    return True


class _Looking(Prover):
    """Remembers which nodes of the folded model each decision has looked at.

    before: the proof of the right fold. changed: the nodes that are others now.
    """

    before: _Looking | None = None
    changed: Collection[str] = frozenset()

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.held: dict[str, tuple[Held, set[str]]] = {}
        self._seen = set[str]()
        region: Callable[..., Any] = self.b.region

        def watched(*what: Any) -> Any:
            found = region(*what)
            self._seen |= {_first(node) for node in found[0]}
            return found

        self.b.region = watched  # type: ignore[assignment, method-assign]

    def _decide(self, node: Node, slot: int, name: str, y: Image) -> Held:
        # A claim that is lost now, as one about a list of tensors may be, makes other regions.
        if self.before is not None and self.lost.keys() <= self.before.lost.keys():
            held, seen = self.before.held.get(name, (None, set()))
            if held is not None and seen.isdisjoint(self.changed):
                return held
        maker = self.b.made.get(y.name)
        self._seen = set() if maker is None else {_first(maker[0])}
        found = super()._decide(node, slot, name, y)
        self.held[name] = found, self._seen
        return found
