"""Broken rules of elementwise maps, windows and reductions."""

from __future__ import annotations

from typing import Any

import numpy as np

from bnfold.fold.carry import maps
from bnfold.fold.carry.common import other_side
from bnfold.fold.roles import Clamp, Leaky, Map, Pad
from tests.onnx_graph.build import Build, Signs
from tests.proof.broken.breaking import (
    Table,
    altered,
    conv,
    passing,
    replaced,
    ruled,
    stored,
    storing,
)

MAPS = Table()
ANY_SIGN = replaced(maps, "positive", lambda *_: None)


def _end(g: Build, y: str) -> str:
    return g.op("Tanh", y, name="end")


# the sign of a scale


def _signed(op: str, signs: Signs = "mixed", **attributes: Any) -> Any:
    def body(g: Build) -> str:
        return _end(g, g.mul(g.op(op, conv(g), name="map", **attributes), signs, name="mul"))

    return body


POOL = {"kernel_shape": [3, 2], "strides": [2, 1]}
for _op, _attributes in (("Relu", {}), ("MaxPool", POOL), ("GlobalMaxPool", {})):
    MAPS(f"Map: {_op} passes a negative scale", ANY_SIGN, "map")(_signed(_op, **_attributes))
ABSOLUTE = altered(Map, "scale", sign="any")
MAPS("Map: Abs gives a negative scale", ABSOLUTE, "map")(_signed("Abs"))
MAPS("Map: LpPool gives a negative scale", ABSOLUTE, "map")(_signed("LpPool", **POOL))


@MAPS(
    "Map: ReduceMax of a negative scale does not become ReduceMin",
    stored(Map, lambda *_: iter(())),
    "map",
)
def _flip(g: Build) -> str:
    y = g.op("ReduceMax", conv(g), g.ints(2, 3, name="axes"), name="map")
    return _end(g, g.bn(y, "negative", name="bn"))


# its shift

SHIFTS = altered(Map, "shift", shift="")


def _shifted(op: str, **attributes: Any) -> Any:
    def body(g: Build) -> str:
        return _end(g, g.add(g.op(op, conv(g), name="map", **attributes), name="add"))

    return body


COUNTED = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}
for _op, _attributes in (("Relu", {}), ("Abs", {}), ("AveragePool", COUNTED), ("LpPool", POOL)):
    MAPS(f"Map: {_op} passes a shift", SHIFTS, "map")(_shifted(_op, **_attributes))


@MAPS("Map: a sum of many entries takes a shift once", altered(Map, gain=1.0), "map")
def _gain(g: Build) -> str:
    return _end(g, g.bn(g.op("ReduceSum", conv(g), g.ints(2, 3, name="axes"), name="map"), name="bn"))


@MAPS(
    "Map: a sum of a number of entries that is not known takes a shift",
    altered(Map, "shift", gain=1.0),
    "map",
)
def _gain_unknown(g: Build) -> str:
    y = g.conv(g.input("x", ("N", 4, "H", 7)), 4, name="conv")
    return _end(g, g.add(g.op("ReduceSum", y, g.ints(2, 3, name="axes"), name="map"), name="add"))


# where it has to be constant


@MAPS("Map: a change that varies in space passes a pool", altered(Map, flat=()), "map")
def _space(g: Build) -> str:
    y = g.op("Transpose", conv(g), perm=[0, 2, 3, 1], name="turn")
    y = g.op("AveragePool", y, kernel_shape=[1, 3], pads=[0, 1, 0, 1], name="map")
    return _end(g, g.mul(y, axis=3, name="mul"))


# Leaky


def _leaky(signs: Signs) -> Any:
    return _signed("LeakyRelu", signs, alpha=0.2)


MAPS("Leaky: the slope stays under a negative scale", stored(Leaky, lambda *_: iter(())), "map")(
    _leaky("negative")
)
MAPS(
    "Leaky: a negative scale is not divided by the slope",
    ruled(Leaky, lambda s, n, slot, f: s.want(other_side(n, slot), f, n), "scale"),
    "map",
)(_leaky("negative"))
MAPS(
    "Leaky: one slope for scales of both signs",
    ruled(Leaky, lambda s, n, slot, f: s.want(other_side(n, slot), f, n), "scale"),
    "map",
)(_leaky("mixed"))
MAPS(
    "Leaky passes a shift",
    ruled(Leaky, lambda s, n, slot, f: s.want(other_side(n, slot), f, n), "shift"),
    "map",
)(_shifted("LeakyRelu", alpha=0.2))


# Clamp


def _clip(g: Build, a: float, b: float) -> str:
    y = g.op("Clip", conv(g), g.const(-0.5, "low"), g.const(1.5, "high"), name="map")
    return _end(g, g.op("Add", g.op("Mul", y, g.const(a, "a"), name="mul"), g.const(b, "b"), name="add"))


MAPS("Clamp: the bounds stay", stored(Clamp, lambda *_: iter(())), "map")(lambda g: _clip(g, 0.6, 0.0))
MAPS("Clamp: the bounds do not move", storing(Clamp, "encode", lambda given: (given[0], 0.0)), "map")(
    lambda g: _clip(g, 1.0, 0.8)
)
MAPS(
    "Clamp: the bounds do not change places",
    storing(Clamp, "encode", lambda given: (np.abs(given[0]), given[1])),
    "map",
)(lambda g: _clip(g, -0.6, 0.0))


@MAPS("Clamp: bounds of 10,000 stay", stored(Clamp, lambda *_: iter(())), "map", gain=1e5)
def _far(g: Build) -> str:
    """What no random input of usual size would meet."""
    y = g.op("Clip", conv(g), g.const(-1e4, "low"), g.const(1e4, "high"), name="map")
    return g.op("Mul", y, g.const(3.0, "a"), name="mul")


@MAPS(
    "Clamp: a scale that differs from channel to channel",
    replaced(maps, "uniform", lambda s, n, f: f),
    "map",
)
def _many(g: Build) -> str:
    y = g.op("Clip", conv(g), g.const(-0.5, "low"), g.const(1.5, "high"), name="map")
    return _end(g, g.mul(y, "positive", name="mul"))


# Pad


def _pad(g: Build, y: str, fill: float) -> str:
    pads = g.ints(0, 0, 1, 1, 0, 0, 1, 1, name="pads")
    return g.op("Pad", y, pads, g.const(fill, "fill"), name="map")


@MAPS("Pad: its fill stays under a scale", stored(Pad, lambda *_: iter(())), "map")
def _pad_scale(g: Build) -> str:
    return _end(g, g.op("Mul", _pad(g, conv(g), 0.7), g.const(-0.6, "a"), name="mul"))


@MAPS("Pad: its fill stays under a shift", stored(Pad, lambda *_: iter(())), "map")
def _pad_shift(g: Build) -> str:
    return _end(g, g.op("Add", _pad(g, conv(g), 0.0), g.const(0.6, "a"), name="add"))


@MAPS("Pad: a shift that differs from channel to channel", altered(Pad, "shift", fill=None), "map")
def _pad_channels(g: Build) -> str:
    return _end(g, g.bn(_pad(g, conv(g), 0.0), name="bn"))


# what is passed on

LIES: dict[str, tuple[str, Any]] = {
    "another sign": ("scale", lambda f: -f),
    "a thousandth more": ("scale", lambda f: f * (1 + 1e-3)),
    "no shift": ("shift", lambda d: d * 0),
    "half of a shift": ("shift", lambda d: d / 2),
    "the channels in another order": ("scale", lambda f: np.roll(f, 1, 1)),
}
for _what, (_kind, _change) in LIES.items():

    @MAPS(f"Map: a pool passes on {_what}", passing(Map, _kind, _change), "map")
    def _passed(g: Build) -> str:
        return _end(g, g.bn(g.op("AveragePool", conv(g), name="map", **POOL), name="bn"))
