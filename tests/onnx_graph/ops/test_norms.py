"""Roles of norms.py: batch norm that may vanish, and operators that normalize by themselves."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from bnfold.errors import ModelError
from bnfold.fold.roles import Affine, Normalize, SoftmaxInput
from bnfold.onnx_graph.ops.table import role_of
from tests.onnx_graph.ops.fake_site import RNG, FakeSite, Runtime, X, f32, read, refused


def norm(x: Any = X, c: int = 4, **options: Any) -> Any:
    parameters = options.pop("parameters", None) or [
        f32(c),
        f32(c),
        f32(c),
        RNG.uniform(0.5, 2, c).astype(np.float32),
    ]
    return read("BatchNormalization", x, *parameters, **{"opset": 15, **options})


def test_an_epsilon_that_is_not_stated_is_a_float32() -> None:
    """Against a variance of 0 the difference to 1e-5 itself is 1e-8 of the scale."""
    zero = np.zeros(4, np.float32)
    role = norm(parameters=[f32(4), f32(4), f32(4), zero])
    assert role.eps == float(np.float32(1e-5)) != 1e-5


@pytest.mark.parametrize("x", [X, ("N", 4), ("N", 4, None), (2, 4, 3, 3, 3)])
def test_batch_norm(x: Any) -> None:
    gamma, beta, mean, var = parameters = [f32(4), f32(4), f32(4), RNG.uniform(0.5, 2, 4).astype(np.float32)]
    role = norm(x, parameters=parameters, epsilon=0.25)
    assert isinstance(role, Affine)
    assert role.kind == "norm"
    assert {name: slot for name, (slot, _) in role.constants.items()} == {
        "gamma": 1,
        "beta": 2,
        "mean": 3,
        "var": 4,
    }
    assert role.eps == 0.25
    assert role.scale.dtype == role.shift.dtype == np.float64
    assert role.scale.shape == role.shift.shape == (1, 4) + (1,) * (len(x) - 2)
    deviation = np.sqrt(var.astype(np.float64) + 0.25)
    np.testing.assert_allclose(role.scale.ravel(), gamma / deviation, rtol=1e-12)
    np.testing.assert_allclose(
        role.shift.ravel(), beta - mean.astype(np.float64) * gamma / deviation, rtol=1e-12
    )


def test_batch_norm_default_epsilon_and_old_opsets() -> None:
    assert norm().eps == pytest.approx(1e-5)
    assert isinstance(norm(opset=6, is_test=1), Affine)
    assert isinstance(norm(opset=1, is_test=1, consumed_inputs=[0, 0, 0, 1, 1], y=X), Affine)
    assert isinstance(norm(opset=7, spatial=0), Affine)
    assert isinstance(norm(opset=14, outputs=3, y=X), Affine)  # declared, and not used


def test_batch_norm_with_batch_statistics() -> None:
    assert "batch statistics" in refused(norm(training_mode=1, outputs=3))
    assert "batch statistics" in refused(norm(opset=6))
    assert "batch statistics" in refused(norm(opset=9, outputs=5))
    assert "statistics to other nodes" in refused(norm(opset=14, outputs=3, used=(0, 1)))


def test_batch_norm_parameters() -> None:
    assert "not constant" in refused(norm(parameters=[f32(4), f32(4), f32(4), (4,)]))
    each = [np.abs(f32(4, 8, 6)) for _ in range(4)]
    assert "spatial=0" in refused(norm(parameters=each, opset=7, spatial=0))
    zero = [f32(4), f32(4), f32(4), np.zeros(4, np.float32)]
    assert "finite" in refused(norm(parameters=zero, epsilon=0.0))
    endless = [np.full(4, np.inf, np.float32), f32(4), f32(4), np.ones(4, np.float32)]
    assert "finite" in refused(norm(parameters=endless))


@pytest.mark.parametrize("wrong", [-1.0, math.nan, math.inf])
def test_batch_norm_with_an_impossible_variance(wrong: float) -> None:
    var = np.ones(4, np.float32)
    var[2] = wrong
    with pytest.raises(ModelError, match=r"'node' \(BatchNormalization\).*channel 2"):
        norm(parameters=[f32(4), f32(4), f32(4), var])


def test_batch_norm_with_mismatched_channels() -> None:
    site = FakeSite("BatchNormalization", (2, "C", 3), *[np.ones(4, np.float32)] * 4, opset=15)
    site.inputs[0] = Runtime(2, 5, 3)
    with pytest.raises(ModelError, match="4 channels"):
        role_of(site)  # type: ignore[arg-type]
    site.inputs[0], site.inputs[2] = Runtime(2, 4, 3), f32(3)
    with pytest.raises(ModelError, match="shapes"):
        role_of(site)  # type: ignore[arg-type]


def test_normalize() -> None:
    def facts(role: Any) -> tuple[Any, ...]:
        assert isinstance(role, Normalize), role
        return (
            role.axes,
            role.over,
            role.removes_mean,
            role.groups,
            role.scale is not None,
            role.bias is not None,
        )

    c = f32(4), f32(4)
    assert facts(read("InstanceNormalization", X, *c)) == ((1,), (2, 3), True, 0, True, True)
    assert facts(read("GroupNormalization", X, *c, num_groups=2, opset=21, y=X)) == (
        (1,),
        (1, 2, 3),
        True,
        0,
        True,
        True,
    )
    groups = read("GroupNormalization", X, f32(2), f32(2), num_groups=2, opset=18, y=X)
    assert facts(groups) == ((1,), (1, 2, 3), True, 2, True, True)
    assert facts(read("LayerNormalization", (2, 9, 4), *c)) == ((2,), (2,), True, 0, True, True)
    assert facts(read("LayerNormalization", (2, 9, 4), f32(9, 4), axis=1))[:2] == ((1, 2), (1, 2))
    assert facts(read("LayerNormalization", (2, 9, 4), f32(4), axis=1))[4:] == (
        False,
        False,
    )  # broadcast: stays as it is
    assert read("LayerNormalization", (2, 9, 4), c[0]).bias_slot == 2
    assert "is used" in refused(read("LayerNormalization", (2, 9, 4), *c, outputs=2, used=(0, 1)))
    rms = read("RMSNormalization", (2, 9, 4), c[0], opset=23, epsilon=0.5)
    assert facts(rms) == ((2,), (2,), False, 0, True, False)
    assert (rms.bias_slot, rms.eps) == (None, 0.5)
    # a bias of run time: neither can change
    assert facts(read("InstanceNormalization", X, c[0], (4,)))[4:] == (False, False)
    assert facts(read("InstanceNormalization", X, (4,), c[0]))[4:] == (False, True)


def test_softmax() -> None:
    assert read("Softmax", X, axis=1) == SoftmaxInput(1)
    assert read("Softmax", X) == SoftmaxInput(3)
    assert read("LogSoftmax", (2, 4), opset=11) == SoftmaxInput(1)
    assert "opset 11" in refused(read("Softmax", X, opset=11))
