"""Folds of all kinds, with the certificate that they write: right ones are proved, changed ones are not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import bnfold
from bnfold.certificate import Certificate, Image
from bnfold.onnx_graph.file.loaded import load
from bnfold.proof.decide import prove
from bnfold.proof.draw import between
from bnfold.proof.result import Proof
from tests.onnx_graph.build import Build
from tests.onnx_graph.cases.patterns import PATTERNS
from tests.onnx_graph.cases.random_graphs import random_model
from tests.onnx_graph.cases.random_sums import random_sums
from tests.passes.channels.planted import planted

KINDS = [random_model, lambda seed: random_sums(seed).model(), planted]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"target": "tensorrt"},
    {"drop_dead_channels": True},
    {"merge_branches": False, "shared": "skip"},
    {"precision": "fp16"},
]


def folded(model: onnx.ModelProto, **options: Any) -> tuple[onnx.ModelProto, Certificate]:
    result, report = bnfold.fold_onnx(model, verify=False, certificate=True, **options)
    assert report.certificate is not None
    return result, report.certificate


def proof(a: onnx.ModelProto, b: onnx.ModelProto, certificate: Certificate | None) -> Proof:
    return prove(load(a), load(b), certificate)


@pytest.mark.parametrize("part", range(4))
def test_random_graphs_are_proved(part: int) -> None:
    """A second oracle beside the comparison of outputs. Half precision may be undecided, never refuted."""
    undecided = []
    for seed in range(5000 + part, 5060, 4):
        options = OPTIONS[seed // 4 % len(OPTIONS)]
        model = KINDS[seed % len(KINDS)](seed)
        after, certificate = folded(model, **options)
        found = proof(model, after, certificate)
        assert found.status != "refuted", (seed, options, str(found))
        if found.status == "undecided":
            undecided.append((seed, options, str(found)))
    assert not [one for one in undecided if one[1] != {"precision": "fp16"}], undecided
    assert len(undecided) <= 2, undecided


def branches() -> onnx.ModelProto:
    """3 x 3, 1 x 1 and a batch norm of x, summed; a Relu; a Conv with a batch norm."""
    g = Build(seed=5, signs="positive")
    x = g.input("x", (2, 6, 8, 8))
    ways = [g.bn(g.conv(x, 6, 3, pads=1, bias=False)), g.bn(g.conv(x, 6, bias=False)), g.bn(x)]
    total = g.op("Add", g.op("Add", ways[0], ways[1]), ways[2])
    g.output(g.bn(g.conv(g.op("Relu", total), 4, 3)))
    return g.model()


def test_merged_branches_are_proved_by_their_kernels() -> None:
    model = branches()
    after, certificate = folded(model)
    found = proof(model, after, certificate)
    assert found.status == "proved", str(found)
    assert found.ways["sums"] == found.ways["weights"] == 1
    assert found.ways["evaluated"] == 1  # the Relu, of other scales
    for moved, status in ((1e-7, "proved"), (3e-6, "refuted")):  # of the largest weight: rounding, and more
        other = changed(after, "conv_weight", lambda w, by=moved: w + by * np.abs(w).max() * (w == w.max()))
        assert proof(model, other, certificate).status == status


def changed(model: onnx.ModelProto, name: str, how: Any) -> onnx.ModelProto:
    other = onnx.ModelProto()
    other.CopyFrom(model)
    tensor = next(t for t in other.graph.initializer if t.name == name)
    value = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(how(value).astype(value.dtype), name))
    return other


def test_two_units_in_the_last_place_are_refused_where_weights_decide() -> None:
    g = Build(seed=1)
    g.output(g.op("Relu", g.bn(g.conv(g.input("x", (2, 3, 8, 8)), 4, 3))))
    model = g.model()
    after, certificate = folded(model)
    assert proof(model, after, certificate).ulps <= 0.5001

    def two(w: Any) -> Any:
        w = w.copy()
        w[1, 2, 0, 1] += 2 * np.spacing(np.abs(w[1, 2, 0, 1]))
        return w

    found = proof(model, changed(after, "conv_weight", two), certificate)
    assert found.status == "refuted"
    assert found.refusal is not None
    assert found.refusal.node == "conv"
    assert found.refusal.entry is not None
    assert found.refusal.entry.at == (0, 1, 2, 1)


@pytest.mark.parametrize("seed", range(6))
def test_weights_that_are_computed_are_never_refuted_for_their_own_rounding(seed: int) -> None:
    """A sum that nearly cancels is rounded by each runtime in its own order: it has no last place."""
    g = Build(seed=seed)
    v = g.const(g.normal((8, 27)), "v")
    products = g.op("Mul", g.op("MatMul", v, g.const(g.normal((27, 1)), "u")), g.const(g.normal((8, 1)), "t"))
    size = g.op("ReduceSum", products, keepdims=0)
    weight = g.op("Reshape", g.op("Div", v, size), g.const(np.array([8, 3, 3, 3]), "shape"))
    g.output(g.bn(g.op("Conv", g.input("x", (2, 3, 8, 8)), weight)))
    model = g.model()
    after, certificate = folded(model)
    assert len(after.graph.node) == 1
    for known in (certificate, None):
        assert proof(model, after, known).status != "refuted"
    wrong = changed(after, after.graph.node[0].input[1], lambda w: w * 1.01)
    assert proof(model, wrong, certificate).status != "proved"


@pytest.mark.parametrize("moved", [0.0, 1e-4])
def test_a_weight_behind_one_rounding_is_refuted_as_a_stored_one(moved: float) -> None:
    g = Build(seed=2)
    integers = g.const(g.rng.integers(-127, 128, (4, 3, 3, 3)), "integers", dtype="int8")
    step = g.const(g.rng.uniform(0.001, 0.003, 4), "step")
    weight = g.op("DequantizeLinear", integers, step, axis=0)
    g.output(g.op("Relu", g.bn(g.op("Conv", g.input("x", (2, 3, 8, 8)), weight, name="conv"), "positive")))
    model = g.model()
    after, certificate = folded(model)
    name = next(node for node in after.graph.node if node.op_type == "DequantizeLinear").input[1]
    found = proof(model, changed(after, name, lambda scale: scale * (1 + moved)), certificate)
    assert found.status == ("refuted" if moved else "proved"), str(found)


def test_the_product_of_a_scale_is_rounded_in_both_models() -> None:
    """Up to two and a half units: what the original computes, the new scale, and what is computed of it."""
    g = Build(seed=4)
    integers = g.const(g.rng.integers(-127, 128, (64, 9, 3, 3)), "integers", dtype="int8")
    weight = g.op("DequantizeLinear", integers, g.const(g.rng.uniform(0.004, 0.008), "step"))
    g.output(g.bn(g.op("Conv", g.input("x", (1, 9, 4, 4)), weight, name="conv"), "positive"))
    model = g.model()
    after, certificate = folded(model)
    found = proof(model, after, certificate)
    assert found.status == "proved", str(found)
    assert 2.0 < found.ulps < 2.5


def test_channels_that_half_precision_rescales_are_claimed() -> None:
    model = planted(62028862)
    after, report = bnfold.fold_onnx(model, verify=False, certificate=True, precision="fp16")
    assert report.precision is not None
    assert report.precision.rescaled
    assert "factors" not in report.precision.to_dict()
    found = proof(model, after, report.certificate)
    assert found.status == "proved", str(found)


def test_an_output_that_is_widened_for_the_caller_is_read_in_half_precision() -> None:
    model = random_sums(63031724).model()
    after, certificate = folded(model, precision="fp16")
    found = proof(model, after, certificate)
    assert found.status == "proved", str(found)


def test_changes_in_several_rounds_are_proved() -> None:
    """A fold makes room for another, or a merge does: what was rounded is rounded again."""
    count = 0
    for seed in range(11, 27):
        model = random_sums(seed).model()
        after, certificate = folded(model)
        count += certificate.rounds > 2
        assert proof(model, after, certificate).status == "proved", seed
    assert count >= 1


def test_dropped_channels_are_proved_and_other_constants_are_not() -> None:
    g = Build(seed=2)
    x = g.bn(g.conv(g.input("x", (1, 3, 8, 8)), 9), signs="zero or positive")
    g.output(g.conv(g.op("Relu", x), 2))
    model = g.model()
    after, certificate = folded(model, drop_dead_channels=True)
    assert proof(model, after, certificate).status == "proved"
    cuts = {key: image for key, image in certificate.images.items() if image is not None and image.cut}
    assert cuts
    for key, image in cuts.items():
        assert image is not None
        assert image.cut is not None
        gone = np.setdiff1d(np.arange(image.cut.constants.size), image.cut.kept)
        constants = image.cut.constants.copy()
        constants[gone[0]] += 1
        wrong = replace(image, cut=replace(image.cut, constants=constants))
        other = replace(certificate, images={**certificate.images, key: wrong})
        assert proof(model, after, other).status != "proved", key


def test_inputs_that_are_frozen_are_no_inputs() -> None:
    g = Build(seed=4)
    g.output(g.bn(g.conv(g.input("x", (1, 3, 8, 8)), 4)))
    model = g.model()
    for tensor in model.graph.initializer:
        info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        model.graph.input.append(info)
    after, certificate = folded(model, freeze_initializers=True)
    assert certificate.frozen
    assert proof(model, after, certificate).status == "proved"
    assert proof(model, after, None).status == "refuted"


def test_ranges_of_inputs_are_premises() -> None:
    """Two filters of negative weights are zero behind a Relu, for inputs that are never negative."""
    g = Build(seed=4)
    weight = g.normal((4, 3, 1, 1))
    weight[:2] = -np.abs(weight[:2])
    y = g.op("Relu", g.conv(g.input("x", (1, 3, 8, 8)), 4, bias=False, w=g.const(weight, "w")))
    g.output(g.conv(y, 3, 3))
    model = g.model()
    after, certificate = folded(model, drop_dead_channels=True, input_ranges={"x": (0.0, 1.0)})
    assert proof(model, after, certificate).status == "proved"
    assert proof(model, after, replace(certificate, premises={})).status != "proved"


@pytest.mark.parametrize("how", ["sign", "scale", "shift", "left out", "another tensor"])
def test_a_wrong_certificate_proves_nothing(how: str) -> None:
    g = Build(seed=6)
    x = g.bn(g.conv(g.input("x", (2, 3, 8, 8)), 4, 3))
    g.output(g.op("Relu", x), g.conv(x, 2))
    model = g.model()
    after, certificate = folded(model)
    assert proof(model, after, certificate).status == "proved"
    for key, image in certificate.images.items():
        if image is None or image.plain:
            continue
        images: dict[Any, Image | None] = dict(certificate.images)
        if how == "left out":
            del images[key]
        else:
            other = {
                "sign": {"p": -np.asarray(image.p)},
                "scale": {"p": np.asarray(image.p) * (1 + 1e-6)},
                "shift": {"q": np.asarray(image.q) + 1e-5},
                "another tensor": {"name": "x"},
            }
            images[key] = replace(image, **other[how])
        assert proof(model, after, replace(certificate, images=images)).status != "proved", key


# Operators that can be computed in float32 only, and do not give the same bits of other numbers.
UNDECIDED = ("DeformConv", "Resize cubic", "GroupNormalization 21", "GridSample with border")


@pytest.mark.parametrize("part", range(8))
def test_every_pattern_that_folds_is_proved(part: int) -> None:
    for case in PATTERNS[part::8]:
        model = case.build()
        after, certificate = folded(model)
        found = proof(model, after, certificate)
        expected = "undecided" if any(name in case.name for name in UNDECIDED) else "proved"
        assert found.status == expected, (case.name, str(found))


@pytest.mark.parametrize("moved", [0.0, 0.01])
def test_bodies_are_proved_in_turn(moved: float) -> None:
    """Batch norms in the branches of an If; then one number of one branch is another."""
    case = next(case for case in PATTERNS if case.name == "inside the branches of If, weights in the branch")
    model = case.build()
    after, certificate = folded(model)
    branch = next(a.g for n in after.graph.node if n.op_type == "If" for a in n.attribute)
    tensor = next(t for t in branch.initializer if len(t.dims) == 4)
    tensor.CopyFrom(
        numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1 + moved), tensor.name)
    )
    for given in (certificate, None):
        found = proof(model, after, given)
        assert found.status == ("proved" if not moved else "refuted"), str(found)
        assert found.ways["bodies"] == (not moved)


@pytest.mark.parametrize("ends", [(0.0, np.inf), (-np.inf, 0.0), (-np.inf, np.inf), (-1.0, 2.0), (3.0, 3.0)])
def test_numbers_between_ends_that_may_be_infinite(ends: tuple[float, float]) -> None:
    low, high = (np.full((3, 1), end) for end in ends)
    found = between(low, high, (2, 3, 5), np.random.default_rng(0))
    assert np.isfinite(found).all()
    assert (low <= found).all()
    assert (found <= high).all()
    assert (len(np.unique(found)) > 1) == (ends[0] < ends[1])


def test_channels_of_a_stored_tensor_that_are_dropped_are_no_claim() -> None:
    g = Build(seed=2)
    x = g.bn(g.conv(g.input("x", (1, 3, 8, 8)), 4), signs="positive")
    stored = np.repeat(np.array([1.0, 2.0]), 64).reshape(1, 2, 8, 8)
    g.output(g.conv(g.op("Concat", g.op("Relu", x), g.const(stored, "stored"), axis=1), 2))
    model = g.model()
    after, report = bnfold.fold_onnx(model, certificate=True, drop_dead_channels=True)
    assert report.verification is not None
    assert report.verification.status == "passed"
    assert report.dropped is not None
    assert report.dropped.parameters == 64 + 2  # a channel of it, and what the conv had for that
    assert proof(model, after, report.certificate).status == "proved"
