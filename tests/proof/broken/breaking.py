"""Ways to break one rule of the fold, and the table of those that are broken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import onnx
import pytest

from bnfold.fold.absorb import absorb
from bnfold.fold.carry import table
from bnfold.fold.carry.spread import Rule, Spread
from bnfold.fold.graph import Array, Node
from tests.onnx_graph.build import Build
from tests.onnx_graph.cases.case import Body, make

__all__ = ["Broken", "Table", "altered", "passing", "replaced", "ruled", "stored", "storing", "together"]

Patch: TypeAlias = pytest.MonkeyPatch
Break: TypeAlias = "Callable[[Patch], None]"
Change: TypeAlias = "Callable[[Any], Any]"
TABLES = {"scale": table.SCALE, "shift": table.SHIFT}
BOTH = ("scale", "shift")


@dataclass(frozen=True)
class Broken:
    """One rule that lies. named: the node of the original where what comes out begins to be wrong.

    options: of the fold. builder: of the model. gain: of the random inputs on which it differs,
    by `least` of the largest output. fine: so little that without a certificate it passes for rounding.
    """

    rule: str
    body: Body
    breaks: Break
    named: str
    options: dict[str, Any] = field(default_factory=dict)
    builder: dict[str, Any] = field(default_factory=dict)
    gain: float = 1.0
    least: float = 1e-4
    fine: bool = False

    def model(self) -> onnx.ModelProto:
        return make(self.rule, self.body, **self.builder)


class Table(list[Broken]):
    """A table under construction: a decorator of the body of the model."""

    def __call__(self, rule: str, breaks: Break, named: str, **more: Any) -> Callable[[Body], Body]:
        def register(body: Body) -> Body:
            self.append(Broken(rule, body, breaks, named, **more))
            return body

        return register


def together(*breaks: Break) -> Break:
    """All of these, where one lie would be found out by another rule."""

    def all_of(patch: Patch) -> None:
        for one in breaks:
            one(patch)

    return all_of


def replaced(where: Any, name: str, wrong: Any) -> Break:
    """An attribute of a module or of a class."""
    return lambda patch: patch.setattr(where, name, wrong)


def ruled(role: type, rule: Rule, *kinds: str) -> Break:
    """Another rule for a role. kinds: of changes."""

    def breaks(patch: Patch) -> None:
        for kind in kinds or BOTH:
            patch.setitem(TABLES[kind], role, rule)

    return breaks


def altered(role: type, *kinds: str, **fields: Any) -> Break:
    """The rule, and what is stored by it, see other fields of the role."""

    def breaks(patch: Patch) -> None:
        for kind in kinds or BOTH:
            patch.setitem(TABLES[kind], role, _with_fields(TABLES[kind][role], fields))
        if role in absorb.ABSORB and not kinds:
            right = absorb.ABSORB[role]

            def wrong(state: Any, node: Node) -> Iterator[Any]:
                with _fields(node, fields):
                    yield from list(right(state, node))

            patch.setitem(absorb.ABSORB, role, wrong)

    return breaks


def _with_fields(right: Rule, fields: dict[str, Any]) -> Rule:
    def wrong(spread: Spread, node: Node, slot: int, f: Array) -> None:
        with _fields(node, fields):
            right(spread, node, slot, f)

    return wrong


@contextmanager
def _fields(node: Node, fields: dict[str, Any]) -> Iterator[None]:
    before = {name: getattr(node.role, name) for name in fields}
    _set(node.role, fields)
    try:
        yield
    finally:
        _set(node.role, before)


def _set(role: Any, fields: dict[str, Any]) -> None:
    for name, value in fields.items():
        object.__setattr__(role, name, value)


def passing(role: type, kind: str, change: Change) -> Break:
    """What the rule asks of the inputs is changed, and nothing is asked of the outputs, which would tell."""

    def breaks(patch: Patch) -> None:
        right = TABLES[kind][role]

        def wrong(spread: Spread, node: Node, slot: int, f: Array) -> None:
            kept = type(spread)
            if slot >= 0:
                return

            def want(self: Spread, tensor: Any, value: Array, at: Node, partial: bool = False) -> None:
                kept.want(self, tensor, np.asarray(change(value)), at, partial)

            try:
                spread.__class__ = type("Lying", (kept,), {"__slots__": (), "want": want})
                right(spread, node, slot, f)
            finally:
                spread.__class__ = kept

        patch.setitem(TABLES[kind], role, wrong)

    return breaks


def stored(role: type, wrong: Callable[..., Any]) -> Break:
    """Another way to store what a role takes in."""
    return lambda patch: patch.setitem(absorb.ABSORB, role, wrong)


def storing(role: type, name: str, change: Change) -> Break:
    """What a role takes in is told otherwise by this function of absorb.py."""

    def breaks(patch: Patch) -> None:
        right, told = absorb.ABSORB[role], getattr(absorb, name)

        def wrong(state: Any, node: Node) -> Iterator[Any]:
            setattr(absorb, name, lambda *given: change(told(*given)))
            try:
                made = list(right(state, node))
            finally:
                setattr(absorb, name, told)
            yield from made

        patch.setitem(absorb.ABSORB, role, wrong)

    return breaks


def image(g: Build, channels: int = 4, name: str = "x") -> str:
    """A small one."""
    return g.input(name, (2, channels, 6, 7))


def conv(g: Build, outputs: int = 4, **more: Any) -> str:
    """Of an image."""
    return g.conv(image(g), outputs, name="conv", **more)
