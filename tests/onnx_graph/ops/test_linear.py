"""Roles of linear.py: operators with weights, and products of two tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bnfold.errors import ModelError
from bnfold.fold.roles import Contract, Linear, Recurrent
from bnfold.onnx_graph.ops.table import role_of
from tests.onnx_graph.ops.fake_site import FakeSite, Runtime, X, f32, read, refused, run, varying


@pytest.mark.parametrize(("rank", "groups"), [(3, 1), (4, 2), (5, 4)])
def test_conv(rank: int, groups: int) -> None:
    kernel = (3,) * (rank - 2)
    weight = f32(8, 4 // groups, *kernel)
    role = read("Conv", (2, 4, *(9,) * (rank - 2)), weight, f32(8), group=groups)
    assert isinstance(role, Linear)
    assert role.split == (groups, 8 // groups, 4 // groups, *kernel)
    assert (role.w_group, role.w_out, role.w_in, role.groups) == (0, 1, 2, groups)
    assert (role.weight_slot, role.x, role.in_axis, role.out_axis, role.free) == (1, 0, 1, 1, ((0, 0),))
    assert (role.bias_slot, role.bias_open, role.bias_blocks_scale, role.padded, role.costs) == (
        2,
        "",
        False,
        "",
        0,
    )
    assert role.bias is not None
    assert role.bias.shape == (8,)


@pytest.mark.parametrize(
    ("size", "kernel", "options", "padded"),
    [
        (8, 3, {}, False),
        (8, 3, {"pads": [0, 0, 0, 0]}, False),
        (8, 3, {"pads": [0, 0, 1, 0]}, True),
        (8, 1, {"pads": [0, 1, 0, 0]}, True),
        (8, 3, {"auto_pad": "VALID"}, False),
        (8, 3, {"auto_pad": "SAME_UPPER"}, True),
        (8, 1, {"auto_pad": "SAME_LOWER"}, False),
        (None, 1, {"auto_pad": "SAME_LOWER", "strides": [2, 2]}, False),
        (8, 2, {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, False),
        (7, 2, {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, True),
        (None, 2, {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, True),
    ],
)
def test_conv_padding(size: int | None, kernel: int, options: dict[str, Any], padded: bool) -> None:
    role = read("Conv", (1, 4, size, size), f32(8, 4, kernel, kernel), **options)
    assert isinstance(role, Linear)
    assert ("padding" in role.padded) == padded
    assert role.bias is None
    assert role.bias_slot == 2


def test_conv_with_parameters_of_run_time() -> None:
    assert refused(read("Conv", X, (8, 4, 3, 3))) == "its weight is not constant: it is an input"
    role = read("Conv", X, f32(8, 4, 3, 3), (8,))
    assert role.bias is None
    assert role.bias_blocks_scale
    assert "not constant" in role.bias_open


def test_conv_that_cannot_run() -> None:
    site = FakeSite("Conv", (1, "C", 5, 5), f32(8, 4, 3, 3))
    site.inputs[0] = Runtime(1, 3, 5, 5)
    with pytest.raises(
        ModelError, match=r"node 'node' \(Conv\): .* needs 4 input channels, and its input has 3"
    ):
        role_of(site)  # type: ignore[arg-type]
    site.inputs[0], site.inputs[1] = Runtime(1, 4, 5), f32(8, 4, 3, 3)
    with pytest.raises(ModelError, match="rank 3"):
        role_of(site)  # type: ignore[arg-type]


def test_conv_transpose() -> None:
    role = read("ConvTranspose", X, f32(4, 3, 2, 2), f32(6), group=2, strides=[2, 2])
    assert isinstance(role, Linear)
    assert role.split == (2, 2, 3, 2, 2)
    assert (role.w_group, role.w_in, role.w_out, role.in_axis, role.out_axis) == (0, 1, 2, 1, 1)
    assert role.bias is not None
    assert "overlap" in role.padded
    one = f32(4, 3, 1, 1)
    assert read("ConvTranspose", X, one).padded == ""
    for options in (
        {"strides": [2, 2]},
        {"pads": [1, 0, 0, 0]},
        {"strides": [2, 1], "output_padding": [1, 0]},
    ):
        assert "overlap" in read("ConvTranspose", X, one, **options).padded


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("constant", [0, 1])
def test_gemm(trans_a: int, trans_b: int, constant: int) -> None:
    a, b = (5, 3)[:: -1 if trans_a else 1], (3, 7)[:: -1 if trans_b else 1]
    inputs = (a, f32(*b)) if constant == 1 else (f32(*a), b)
    role = read(
        "Gemm",
        *inputs,
        f32(1, 7) if constant else f32(5, 1),
        transA=trans_a,
        transB=trans_b,
        alpha=0.5,
        beta=2.0,
    )
    assert isinstance(role, Linear)
    assert (role.weight_slot, role.x, role.alpha, role.beta, role.costs) == (
        constant,
        1 - constant,
        0.5,
        2.0,
        0,
    )
    weight, x = (b, a) if constant else (a, b)
    assert role.split == weight
    assert role.w_group is None
    assert weight[role.w_in] == x[role.in_axis] == 3
    y = (5, 7)
    assert weight[role.w_out] == y[role.out_axis] == (7 if constant else 5)
    ((source, goal),) = role.free
    assert x[source] == y[goal] == (5 if constant else 7)
    assert role.bias is not None


def test_gemm_bias() -> None:
    weight = f32(3, 7)
    for shape in [(), (7,), (1, 7), (5, 1), (5, 7)]:
        assert read("Gemm", (5, 3), weight, np.asarray(f32(*shape))).bias.shape == shape
    absent = read("Gemm", (5, 3), weight, beta=0.5)
    assert (absent.bias, absent.bias_slot, absent.beta, absent.bias_open) == (None, 2, 1.0, "")
    ignored = read("Gemm", (5, 3), weight, (7,), beta=0.0)  # not even looked at
    assert (ignored.bias, ignored.beta, ignored.bias_open, ignored.bias_blocks_scale) == (
        None,
        1.0,
        "",
        False,
    )
    dynamic = read("Gemm", (5, 3), weight, (7,))
    assert dynamic.bias_blocks_scale
    assert "not constant" in dynamic.bias_open
    across = read("Gemm", f32(5, 3), (3, 7), f32(7))  # the outputs are the rows
    assert across.bias_blocks_scale
    assert "other axis" in across.bias_open
    assert refused(read("Gemm", (5, 3), (3, 7))) == "its weight is not constant: it is an input"


def test_matmul() -> None:
    def facts(role: Any) -> tuple[Any, ...]:
        assert isinstance(role, Linear), role
        return (
            role.x,
            role.in_axis,
            role.out_axis,
            role.w_in,
            role.w_out,
            role.free,
            role.costs,
            bool(role.padded),
        )

    assert facts(read("MatMul", (5, 3), f32(3, 7))) == (0, 1, 1, 0, 1, ((0, 0),), 0, False)
    assert facts(read("MatMul", (2, 5, 3), f32(3, 7))) == (0, 2, 2, 0, 1, ((0, 0), (1, 1)), 1, False)
    assert facts(read("MatMul", (3,), f32(3, 7))) == (0, 0, 0, 0, 1, (), 1, False)
    assert facts(read("MatMul", f32(7, 3), (2, 3, 5))) == (1, 1, 1, 1, 0, ((0, 0), (2, 2)), 1, False)
    assert facts(read("MatMul", f32(7, 3), (3, 5))) == (1, 0, 0, 1, 0, ((1, 1),), 1, False)
    assert facts(read("MatMul", f32(7, 3), (3,))) == (1, 0, 0, 1, 0, (), 1, False)
    # a weight with batch axes: the ones that it stretches do not pass
    assert facts(read("MatMul", (2, 5, 3), f32(2, 3, 7))) == (0, 2, 2, 1, 2, ((0, 0), (1, 1)), 1, True)
    assert facts(read("MatMul", (1, 5, 3), f32(2, 3, 7))) == (0, 2, 2, 1, 2, ((1, 1),), 1, True)
    assert facts(read("MatMul", ("N", 5, 3), f32(2, 3, 7))) == (0, 2, 2, 1, 2, ((1, 1),), 1, True)
    assert facts(read("MatMul", (5, 3), f32(1, 3, 7))) == (0, 1, 2, 1, 2, ((0, 1),), 1, False)
    assert facts(read("MatMul", f32(2, 7, 3), (4, 1, 3, 5))) == (1, 2, 2, 2, 1, ((0, 0), (3, 3)), 1, True)
    assert read("MatMul", (5, 3), f32(3, 7)).bias_slot is None
    assert "vector" in refused(read("MatMul", (5, 3), f32(3)))
    site = FakeSite("MatMul", (5, "K"), f32(3, 7))
    site.inputs[0] = Runtime(5, 4)
    with pytest.raises(ModelError, match="does not match"):
        role_of(site)  # type: ignore[arg-type]


def test_matmul_of_two_tensors() -> None:
    plain = read("MatMul", (2, 4, 5, 3), (2, 4, 3, 7))
    assert plain == Contract(((0, 1, 2, None), (0, 1, None, 3)))
    assert read("MatMul", ("N", 1, 5, 3), (4, 3, 7)) == Contract(((0, None, 2, None), (1, None, 3)))
    assert "vector" in refused(read("MatMul", (2, 3), (3,)))
    last, middle = FakeSite("Softmax", (2, 5, 3)), FakeSite("Softmax", (2, 5, 3), axis=1)
    old = FakeSite("Softmax", (2, 5, 3), opset=11)
    assert read("MatMul", (2, 5, 3), (2, 3, 7), producer=last).stochastic == 0
    for producer in (middle, old, FakeSite("Sigmoid", (2, 5, 3)), None):
        assert read("MatMul", (2, 5, 3), (2, 3, 7), producer=producer).stochastic is None


def test_einsum() -> None:
    for equation in ("bij, bjk -> bik", "...ij,...jk->...ik"):
        role = read("Einsum", (2, 5, 3), (2, 3, 7), equation=equation)
        assert role == Contract(((0, 1, None), (0, None, 2)))
    turned = read("Einsum", (2, 5, 3), (3, 7), equation="bij,jk->ibk")
    assert turned == Contract(((1, 0, None), (None, 2)))
    assert read("Einsum", (2, 5, 3), (1, 3, 7), equation="bij,bjk->bik") == Contract(
        ((0, 1, None), (None, None, 2))
    )
    for equation, inputs in [
        ("bij,bjk", ((2, 5, 3), (2, 3, 7))),
        ("ii,ij->ij", ((3, 3), (3, 4))),
        ("ij->ji", ((3, 4),)),
        ("...ij,jk->ik", ((2, 5, 3), (3, 7))),
    ]:
        assert "equation" in refused(read("Einsum", *inputs, equation=equation))


@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrent(op: str, gates: int) -> None:
    weight, recurrence, bias = f32(1, gates * 5, 3), f32(1, gates * 5, 5), f32(1, 2 * gates * 5)
    for layout in (0, 1):
        role = read(op, (7, 2, 3), weight, recurrence, bias, hidden_size=5, layout=layout)
        assert isinstance(role, Recurrent)
        assert (role.weight_slot, role.bias_slot, role.x, role.axis) == (1, 3, 0, 2)
        assert role.bias is not None
    assert read(op, (7, 2, 3), weight, recurrence, hidden_size=5).bias is None
    assert "weight is not constant" in refused(read(op, (7, 2, 3), weight.shape, recurrence, hidden_size=5))
    assert "bias is not constant" in refused(
        read(op, (7, 2, 3), weight, recurrence, bias.shape, hidden_size=5)
    )


@pytest.mark.parametrize(
    ("op", "inputs", "options"),
    [
        ("Conv", ((2, 6, 5, 5), f32(8, 6, 3, 3)), {}),
        ("Conv", ((2, 6, 5, 5), f32(4, 3, 3, 3)), {"group": 2, "pads": [1, 1, 1, 1]}),
        ("Conv", ((2, 6, 5), f32(12, 1, 3)), {"group": 6}),
        ("ConvTranspose", ((2, 6, 4, 4), f32(6, 4, 2, 2)), {"strides": [2, 2]}),
        ("ConvTranspose", ((2, 6, 4, 4), f32(6, 2, 3, 3)), {"group": 3}),
        ("Gemm", ((5, 3), f32(3, 7)), {}),
        ("Gemm", ((3, 5), f32(7, 3)), {"transA": 1, "transB": 1, "alpha": 0.5}),
        ("Gemm", (f32(3, 5), (7, 3)), {"transA": 1, "transB": 1}),
        ("MatMul", ((2, 5, 3), f32(3, 7)), {}),
        ("MatMul", ((4, 2, 5, 3), f32(2, 3, 7)), {}),
        ("MatMul", (f32(7, 3), (2, 3, 5)), {}),
        ("MatMul", (f32(7, 3), (3,)), {}),
        ("MatMul", ((3,), f32(2, 3, 7)), {}),
    ],
)
def test_axes_by_numbers(op: str, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
    """Factors along `in_axis` and `out_axis` are those of the weight along `w_in` and `w_out`."""
    site = FakeSite(op, *inputs, **options)
    role = role_of(site)  # type: ignore[arg-type]
    assert isinstance(role, Linear)
    shape, x = inputs[role.x], f32(*inputs[role.x])
    y = run(site, x, role.x)
    u, p = varying(shape, role.in_axis), varying(y.shape, role.out_axis)

    def along(factor: Any, axis: int) -> Any:
        axes = {axis, axis if role.w_group is None else role.w_group}
        return factor.reshape([size if i in axes else 1 for i, size in enumerate(role.split)])

    weight = inputs[role.weight_slot]
    new = weight.reshape(role.split) * along(u, role.w_in) * along(p, role.w_out)
    changed = list(inputs)
    changed[role.weight_slot] = new.reshape(weight.shape)
    scaled = run(FakeSite(op, *changed, **options), x, role.x)
    np.testing.assert_allclose(scaled, p * run(site, u * x, role.x), 1e-3, 1e-4)
    for source, goal in role.free:
        f = varying(shape, source)
        shaped = f.reshape([shape[source] if axis == goal else 1 for axis in range(y.ndim)])
        np.testing.assert_allclose(run(site, f * x, role.x), shaped * y, 1e-3, 1e-4)
