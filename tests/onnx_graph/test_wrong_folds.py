"""Folds that were wrong once: the fold of today computes what the original does, and what was made of it then
does not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import bnfold
from tests.onnx_graph.build import Build
from tests.onnx_graph.look import difference, feeds, run

PLACE = Path(__file__).parent / "wrong_folds"
NAMES = sorted(path.name.removesuffix(".original.onnx") for path in PLACE.glob("*.original.onnx"))
NEAR = 2e-6
FOLDS: dict[str, dict[str, Any]] = {"grid_behind_conditions": {"target": "tensorrt"}}
SIZE = np.array([2, 3, 5, 6])  # of the grid


def optimized(model: onnx.ModelProto, feed: dict[str, Any]) -> list[Any]:
    """By onnxruntime with its optimizer, which has stricter eyes for shapes."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return [np.asarray(value) for value in session.run(None, feed)]


def off(original: onnx.ModelProto, folded: onnx.ModelProto, run: Any = run) -> float:
    """How far the outputs are apart; infinity if the folded model does not run."""
    feed = {name: SIZE if name == "size" else value for name, value in feeds(original, 4).items()}
    expected = run(original, feed)
    try:
        return difference(expected, run(folded, feed))
    except Exception:
        return float("inf")


@pytest.mark.parametrize("name", NAMES)
def test_what_was_folded_wrongly_is_folded_right(name: str) -> None:
    original, wrong = (onnx.load(PLACE / f"{name}.{which}.onnx") for which in ("original", "wrong"))
    folded, _ = bnfold.fold_onnx(original, verify=False, **FOLDS.get(name, {}))
    onnx.checker.check_model(folded, full_check=True)
    execute = optimized if name in FOLDS else run
    assert off(original, wrong, execute) > 1e-2
    assert off(original, folded, execute) <= NEAR


def test_the_wrong_ones_are_known_by_name() -> None:
    told = (PLACE / "README.md").read_text()
    assert len(NAMES) >= 10
    assert all(name in told for name in NAMES)


def _rows(g: Build, x: str, size: tuple[int, ...]) -> str:
    """A scale along the given axis of a tensor of rank 4."""
    return g.op("Mul", x, g.const(g.rng.uniform(0.5, 2, size) * g.rng.choice([-1, 1], size), "rows"))


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("kinds", ["cr", "rc", "crr", "rcr", "ncr", "nrc", "brc", "cbr", "1cr", "rrc"])
def test_a_product_keeps_its_factors_when_others_pass(left: bool, wide: bool, kinds: str) -> None:
    """In any order: a scale that the product takes (c: for each channel, n: -t, 1: ones), and one that passes
    it (r: along rows, b: a batch norm); wide: stored in full.
    """
    g = Build(17, seed=len(kinds) + left)
    x = g.op("Conv", g.input("x", [2, 3, 5, 6]), g.weight((4, 3, 1, 1), 3))
    along = 2 if left else 3
    y = g.op("MatMul", g.weight((7, 5), 5), x) if left else g.op("MatMul", x, g.weight((6, 7), 6))
    shape: tuple[Any, ...] = (1, 4, 7, 6) if left else (1, 4, 5, 7)
    for kind in kinds:
        if kind == "b":
            y = g.bn(y)
            continue
        if kind == "n":
            y = g.op("Sub", g.const(np.zeros(()), "zero"), y)
            continue
        axis = {"c": along, "r": 1, "1": 0}[kind]
        value = g.rng.uniform(0.5, 2, [n if a == axis else 1 for a, n in enumerate(shape)])
        full = np.broadcast_to(value, shape) if wide else value
        y = g.op(str(g.rng.choice(["Mul", "Div"])), y, g.const(full, "factors"))
    g.output(y)
    model = g.model()
    folded, report = bnfold.fold_onnx(model, verify=False)
    assert off(model, folded) <= NEAR
    if "b" not in kinds:  # the shift of a batch norm is another along each row
        assert not report.kept
        assert [node.op_type for node in folded.graph.node] == ["Conv", "MatMul"]


def test_a_constant_that_is_stored_in_full_folds_like_the_vector_that_it_is() -> None:
    for op, order in (("Mul", 1), ("Div", 1), ("Add", 1), ("Sub", 1), ("Sub", -1), ("Mul", -1)):
        g = Build(17, seed=2)
        y = g.op("Conv", g.input("x", [1, 3, 5, 6]), g.weight((4, 3, 1, 1), 3))
        full = g.const(np.broadcast_to(g.rng.uniform(0.5, 2, (4, 1, 1)), (1, 4, 5, 6)), "full")
        g.output(g.bn(g.op(op, *[y, full][::order])))
        model = g.model()
        folded, _ = bnfold.fold_onnx(model, verify=False)
        assert [node.op_type for node in folded.graph.node] == ["Conv"], op
        assert off(model, folded) <= NEAR, op


def test_a_constant_that_stays_keeps_the_shape_that_it_is_stored_in() -> None:
    g = Build(17, seed=2)
    y = g.op("Mul", g.op("Sigmoid", g.input("x", [1, 3, 5, 6])), g.const(np.ones((1, 3, 5, 6)), "full"))
    g.output(g.op("Sigmoid", g.bn(y, shift=False)))
    model = g.model()
    folded, _ = bnfold.fold_onnx(model, verify=False)
    assert off(model, folded) <= NEAR


@pytest.mark.parametrize("beta", [0.0, 0.5])
@pytest.mark.parametrize("c", ["stored", "one", "wide", "computed"])
@pytest.mark.parametrize("flip", [0, 1])
def test_a_gemm_that_grows_narrower_has_a_bias_that_fits(beta: float, c: str, flip: int) -> None:
    g = Build(17, seed=5)
    x = g.input("x", [1, 9])
    shape = {"stored": (7,), "one": (1,), "wide": (1, 7), "computed": (7,)}[c]
    bias = g.const(g.normal(shape), "c")
    bias = g.op("Abs", g.input("c_in", [7])) if c == "computed" else bias
    y = g.op("Gemm", x, g.weight((7, 9) if flip else (9, 7), 9), bias, beta=beta, transB=flip)
    g.output(g.op("Gemm", y, g.weight((7, 4), 7), g.const(g.normal((4,)), "d"), beta=beta))
    model = g.model()
    folded, report = bnfold.fold_onnx(model, verify=False)
    onnx.checker.check_model(folded, full_check=True)
    assert len(report.merged) == (beta == 0 or c != "computed")
    assert off(model, folded) <= NEAR


@pytest.mark.parametrize("signs", ["positive", "mixed"])
@pytest.mark.parametrize("ones", [(), (1,)])
@pytest.mark.parametrize("point", [None, 3])
def test_one_scale_of_integers_takes_a_batch_norm_from_one_side(
    signs: Any, ones: tuple[int, ...], point: int | None
) -> None:
    for op in ("Conv", "Gemm", "MatMul"):
        g = Build(17, seed=6, signs=signs)
        last = (1, 1) if op == "Conv" else ()
        shape = (5, 3, 1, 1) if op == "Conv" else (3, 5)
        x = g.bn(g.input("x", [2, 3, *(4, 4)[: len(last)]]), shift=op != "MatMul")
        parts = [g.const(g.rng.integers(-128, 127, shape), "integers", dtype="int8")]
        parts += [g.const(np.full(ones, 0.01), "step")]
        parts += [g.const(np.full(ones, point), "zero_point", dtype="int8")] if point is not None else []
        weight = g.op("DequantizeLinear", *parts)
        y = g.op(op, x, weight, *([] if op == "MatMul" else [g.const(g.normal((5,)), "bias")]))
        g.output(g.bn(y, shift=op != "MatMul"))
        model = g.model()
        folded, report = bnfold.fold_onnx(model, verify=False)
        onnx.checker.check_model(folded, full_check=True)
        assert (len(report.folded), len(report.kept)) == (1, 1)
        assert "its weight is quantized" in report.kept[0].reason
        assert off(model, folded) <= NEAR


def test_one_scale_of_integers_takes_one_number_from_the_other_side() -> None:
    g = Build(17, seed=6)
    x = g.op("Mul", g.input("x", [2, 3, 4, 4]), g.const(np.float32(-1.5), "number"))
    weight = g.op("DequantizeLinear", g.const(g.rng.integers(-99, 99, (5, 3, 1, 1)), "i", dtype="int8"),
                  g.const(np.float32(0.01), "step"))  # fmt: skip
    g.output(g.bn(g.op("Conv", x, weight, g.const(g.normal((5,)), "bias"))))
    model = g.model()
    folded, report = bnfold.fold_onnx(model, verify=False)
    assert not report.kept
    assert off(model, folded) <= NEAR
