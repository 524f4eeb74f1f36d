"""Roles of windowed.py: pools, reductions, resampling."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from bnfold.fold.roles import Map
from bnfold.onnx_graph.ops.table import role_of
from tests.onnx_graph.ops.fake_site import FakeSite, Runtime, X, f32, ints, read, refused, run, varying


def test_max_pool() -> None:
    assert read("MaxPool", X, kernel_shape=[2, 2]) == Map("positive", flat=(2, 3))
    assert read("MaxPool", X, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=1) == Map(
        flat=(2, 3)
    )
    assert read("MaxPool", X, kernel_shape=[3, 3], auto_pad="SAME_UPPER").flat == (2, 3)
    assert "indices" in refused(read("MaxPool", X, kernel_shape=[2, 2], outputs=2, used=(0, 1)))
    assert isinstance(read("MaxPool", X, kernel_shape=[2, 2], outputs=2), Map)
    for options in (
        {"kernel_shape": [2, 2], "pads": [2, 0, 0, 0]},
        {"kernel_shape": [2, 2], "pads": [0, 0, 0, 2]},
        {"kernel_shape": [1, 1], "strides": [2, 2], "ceil_mode": 1},
    ):
        assert "padding only" in refused(read("MaxPool", X, **options))
    # both taps of a dilated window beside a narrow image
    wide = {"kernel_shape": [2], "dilations": [2], "pads": [1, 1]}
    assert "padding only" in refused(read("MaxPool", (1, 1, 1), **wide))
    assert "padding only" in refused(read("MaxPool", (1, 1, None), **wide))
    assert isinstance(read("MaxPool", (1, 1, 2), **wide), Map)


def test_average_pool() -> None:
    assert read("AveragePool", X, kernel_shape=[3, 3], pads=[1, 1, 1, 1]) == Map("any", flat=(2, 3))
    counted = {"kernel_shape": [3, 3], "count_include_pad": 1}
    assert read("AveragePool", X, **counted).shift == ""
    assert "padding" in read("AveragePool", X, pads=[1, 1, 1, 1], **counted).shift
    assert "padding" in read("AveragePool", X, auto_pad="SAME_UPPER", **counted).shift
    assert "padding" in read("AveragePool", X, ceil_mode=1, strides=[2, 2], **counted).shift
    assert read("AveragePool", (1, 4, 7, 7), ceil_mode=1, strides=[2, 2], **counted).shift == ""
    assert "padding" in read("AveragePool", X, kernel_shape=[1, 1], pads=[1, 0, 0, 0]).shift


def test_global_pools() -> None:
    assert read("GlobalAveragePool", X) == Map("any", flat=(2, 3))
    assert read("GlobalMaxPool", X) == Map("positive", flat=(2, 3))
    assert read("GlobalLpPool", X) == Map("absolute", "GlobalLpPool does not pass a shift", flat=(2, 3))
    assert read("LpPool", X, kernel_shape=[2, 2]) == Map(
        "absolute", "LpPool does not pass a shift", flat=(2, 3)
    )


def test_reductions() -> None:
    axes = ints(-1, 2)
    assert read("ReduceMean", X, axes) == Map("any", flat=(2, 3))
    assert read("ReduceMean", X, axes=[2, -1], keepdims=0, opset=13) == Map(
        "any", flat=(2, 3), squeezed=(2, 3)
    )
    assert read("ReduceMean", X).flat == (0, 1, 2, 3)
    assert read("ReduceSum", X, axes) == Map("any", flat=(2, 3), gain=48.0)
    assert read("ReduceSum", X, axes=[1], opset=11) == Map("any", flat=(1,), gain=4.0)
    assert read("ReduceSum", (2, 4, None, 6), axes).gain == 0.0
    assert read("ReduceMax", X, axes) == Map("positive", flat=(2, 3), flip="ReduceMin")
    assert read("ReduceMin", X, axes).flip == "ReduceMax"
    for op in ("ReduceL1", "ReduceL2"):
        assert read(op, X, axes) == Map("absolute", f"{op} does not pass a shift", flat=(2, 3))
    assert "not constant" in refused(read("ReduceMean", X, Runtime(1, dtype=TensorProto.INT64), y=X))
    assert "no axis" in refused(read("ReduceSum", X, noop_with_empty_axes=1))
    assert refused(read("ReduceProd", X)) == "ReduceProd is not linear"


def test_resize() -> None:
    scales = np.asarray([1, 1, 2, 2], np.float32)
    assert read("Resize", X, None, scales) == Map("any", flat=(2, 3))
    assert read("Resize", X, None, np.zeros(0, np.float32), ints(2, 4, 16, 6)) == Map("any", flat=(2,))
    assert read("Resize", X, None, None, ints(16, 12), axes=[2, 3]).flat == (2, 3)
    assert read("Resize", X, scales, opset=10).flat == (2, 3)
    assert read("Upsample", X, scales, opset=9).flat == (2, 3)
    assert read("Upsample", X, scales=[1.0, 1.0, 2.0, 1.0], opset=7).flat == (2,)
    assert read("Resize", X, None, Runtime(4)).flat == (0, 1, 2, 3)  # the same size may still be resampled
    sizes = Runtime(4, dtype=TensorProto.INT64)
    assert read("Resize", X, None, None, sizes, y=(2, 4, None, None)).flat == (2, 3)
    assert read(
        "Resize", X, None, scales, coordinate_transformation_mode="tf_half_pixel_for_nn", opset=11
    ).flat == (0, 1, 2, 3)
    crop = read("Resize", X, f32(8), scales, coordinate_transformation_mode="tf_crop_and_resize")
    assert "outside the image" in refused(crop)


def test_grid_sample() -> None:
    grid = (2, 5, 5, 2)
    assert "padding" in read("GridSample", X, grid).shift
    for mode in ("border", "reflection"):
        assert read("GridSample", X, grid, padding_mode=mode) == Map("any", flat=(2, 3))


@pytest.mark.parametrize(
    ("op", "inputs", "options"),
    [
        ("Relu", (X,), {}),
        ("Abs", (X,), {}),
        ("MaxPool", (X,), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]}),
        ("AveragePool", (X,), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]}),
        ("AveragePool", (X,), {"kernel_shape": [3, 3], "count_include_pad": 1, "pads": [1, 1, 1, 1]}),
        ("GlobalAveragePool", (X,), {}),
        ("GlobalMaxPool", (X,), {}),
        ("ReduceMean", (X, ints(2, 3)), {"keepdims": 0}),
        ("ReduceSum", (X, ints(1, -1)), {"keepdims": 0}),
        ("ReduceMax", (X, ints(2)), {}),
        ("ReduceL2", (X, ints(2)), {}),
        ("Resize", (X, None, np.asarray([1, 1, 1.5, 2], np.float32)), {"mode": "linear"}),
        ("Trilu", (X,), {}),
    ],
)
def test_maps_by_numbers(op: str, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
    """f(p*x + q) = p*f(x) + gain*q for all p and q that the role allows."""
    site = FakeSite(op, *inputs, **options)
    role = role_of(site)  # type: ignore[arg-type]
    assert isinstance(role, Map)
    x, free = f32(*X), [axis for axis in range(4) if axis not in role.flat]
    p = varying(X, *free) if role.sign != "positive" else np.abs(varying(X, *free))
    q = np.zeros_like(p) if role.shift else varying(X, *free)
    squeezed = role.squeezed
    left, right = run(site, p * x + q), run(site, x)
    p = np.abs(p) if role.sign == "absolute" else p
    p, q = (a.squeeze(squeezed) if squeezed else a for a in (p, q))
    np.testing.assert_allclose(left, p * right + role.gain * q, rtol=2e-4, atol=2e-5)
