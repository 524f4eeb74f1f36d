"""Cases of folding: tiny models, each with what must become of its batch norms."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import onnx

from tests.onnx_graph.build import Build

Body: TypeAlias = (
    "Callable[[Build], str | tuple[str, ...]]"  # adds nodes and returns what shall be graph outputs
)


@dataclass(frozen=True)
class Pattern:
    """A model whose affine nodes must vanish.

    left: batch norms and per-channel Mul, Add, Sub, Div that remain; norms: the batch norms among them.
    evaluator: "reference" where onnxruntime has no kernels. tolerance: of max|difference| / max|output|.
    gain: of the random inputs.
    """

    name: str
    build: Callable[[], onnx.ModelProto]
    left: int = 0
    norms: int = 0
    note: str = ""
    evaluator: str = "onnxruntime"
    tolerance: float = 1e-5
    gain: float = 1.0


@dataclass(frozen=True)
class Left:
    """A model some of whose affine nodes must stay.

    kept: their names. blocked_by, reason: what must occur in the entry of each: names, words of the reason.
    folds: names of affine nodes that must vanish all the same; without any, the model comes back as it was.
    cure: what the entry's must say; "none": it has none. runs: the model can be run (some
    training forms cannot).
    """

    name: str
    build: Callable[[], onnx.ModelProto]
    kept: tuple[str, ...]
    blocked_by: tuple[str, ...]
    reason: tuple[str, ...] = ()
    folds: tuple[str, ...] = ()
    cure: str = ""
    runs: bool = True
    evaluator: str = "onnxruntime"
    tolerance: float = 1e-5
    gain: float = 1.0


def make(name: str, body: Body, **options: Any) -> onnx.ModelProto:
    """The model of a case; its seed comes from its name. options: of the builder."""
    g = Build(seed=zlib.crc32(name.encode()), **options)
    outputs = body(g)
    g.output(*((outputs,) if isinstance(outputs, str) else outputs))
    return g.model()


class Patterns(list[Pattern]):
    """A table under construction: as a decorator, or called with a body."""

    def add(self, name: str, body: Body, *, builder: dict[str, Any] | None = None, **fields: Any) -> None:
        self.append(Pattern(name, partial(make, name, body, **(builder or {})), **fields))

    def __call__(
        self, name: str, *, builder: dict[str, Any] | None = None, **fields: Any
    ) -> Callable[[Body], Body]:
        def register(body: Body) -> Body:
            self.add(name, body, builder=builder, **fields)
            return body

        return register


class LeftAlone(list[Left]):
    """Likewise for cases that stay."""

    def __call__(
        self,
        name: str,
        kept: str | tuple[str, ...],
        blocked_by: str | tuple[str, ...],
        reason: str | tuple[str, ...] = (),
        *,
        builder: dict[str, Any] | None = None,
        **fields: Any,
    ) -> Callable[[Body], Body]:
        def register(body: Body) -> Body:
            build = partial(make, name, body, **(builder or {}))
            self.append(Left(name, build, _tuple(kept), _tuple(blocked_by), _tuple(reason), **fields))
            return body

        return register


def _tuple(value: str | tuple[str, ...]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else value


def image(g: Build, channels: int = 6, name: str = "x") -> str:
    return g.input(name, (2, channels, 9, 11))


def rows(g: Build, features: int = 6, name: str = "x") -> str:
    return g.input(name, (5, features))


def tokens(g: Build, features: int = 6, name: str = "x") -> str:
    """Of shape (batch, tokens, features)."""
    return g.input(name, (2, 7, features))
