"""Patterns where entries are chosen, placed or summed up along another axis than the channels; lengths."""

from __future__ import annotations

import numpy as np

from tests.onnx_graph.build import Build
from tests.onnx_graph.cases.case import Patterns, image

CHOSEN = Patterns()

SHAPE = (2, 7, 9, 11)


def _scales(g: Build, y: str, signs: str = "mixed") -> str:
    """A Mul by channel: what passes no shift may pass this."""
    return g.op("Mul", y, g.const(g.scales(7, signs).reshape(7, 1, 1), "scales"))  # type: ignore[arg-type]


def _places(g: Build, *shape: int) -> str:
    return g.const(g.rng.integers(0, 9, shape), "places")


@CHOSEN("CumSum -> scales")
def _summed(g: Build) -> str:
    along = g.const(np.array(-1), "along")
    return g.op("Sigmoid", _scales(g, g.op("CumSum", g.conv(image(g), 7), along, exclusive=1, reverse=1)))


@CHOSEN("GatherElements -> bn")
def _gathered(g: Build) -> str:
    places = _places(g, *SHAPE)
    return g.op("Sigmoid", g.bn(g.op("GatherElements", g.conv(image(g), 7), places, axis=2)))


@CHOSEN("GatherElements that takes fewer rows and samples -> bn")
def _gathered_fewer(g: Build) -> str:
    places = _places(g, 1, 7, 3, 11)
    return g.op("Sigmoid", g.bn(g.op("GatherElements", g.conv(image(g), 7), places, axis=2)))


@CHOSEN("TopK -> bn with positive scales")
def _top(g: Build) -> str:
    y = g.ops("TopK", g.conv(image(g), 7), g.ints(3), count=2, axis=3, sorted=0)[0]
    return g.op("Sigmoid", g.bn(g.op("ReduceMax", y, g.ints(3), keepdims=1), "positive"))


@CHOSEN("ScatterElements that adds up among zeros -> scales")
def _added(g: Build) -> str:
    """As a graph network gathers what its edges say, behind a linear layer."""
    zeros, places = g.const(np.zeros((2, 7, 9, 11)), "zeros"), _places(g, 2, 7, 20, 11)
    y = g.conv(g.input("x", (2, 6, 20, 11)), 7)
    return g.op("Tanh", _scales(g, g.op("ScatterElements", zeros, places, y, axis=2, reduction="add")))


@CHOSEN("ScatterElements among zeros -> Add -> bn")
def _placed(g: Build) -> str:
    zeros = g.const(np.zeros(SHAPE), "zeros")
    places = g.const(np.broadcast_to(np.arange(9)[::-1, None], SHAPE).copy(), "places")
    y = g.op("ScatterElements", zeros, places, g.conv(image(g), 7, bias=False), axis=2)
    return g.op("Tanh", _scales(g, y))


@CHOSEN("scales of both signs -> Abs -> conv")
def _absolute(g: Build) -> str:
    x = g.op("Sigmoid", g.conv(image(g), 7))
    return g.conv(g.op("Abs", _scales(g, x)), 4)


@CHOSEN("scales of both signs -> ReduceL2 -> Gemm")
def _length(g: Build) -> str:
    x = g.op("Tanh", g.conv(image(g), 7))
    return g.gemm(g.op("ReduceL2", _scales(g, x), g.ints(2, 3), keepdims=0), 4)
