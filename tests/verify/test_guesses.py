"""Inputs of sizes that the model leaves open: what is tried, and what is said."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

import bnfold
from bnfold.onnx_graph.run import evaluators as run
from bnfold.options import Check
from bnfold.verify.models import verify
from tests.onnx_graph.build import Build
from tests.onnx_graph.run.test_evaluators import model, value
from tests.verify.test_models import chain, linear


def test_dynamic_sizes_are_guessed_until_one_runs():
    # Only an input of 48 x 48 can be added to the constant.
    k = np.zeros((48, 48), np.float32)
    proto = model(
        [helper.make_node("Add", ["x", "k"], ["y"])],
        [value("x", ["N", 3, "H", "W"])],
        [value("y", None)],
        {"k": k},
    )
    assert verify(proto, proto).status == "passed"
    assert verify(proto, proto, Check(shapes={"x": (1, 3, 48, 1)})).status == "passed"
    result = verify(proto, proto, Check(shapes={"x": (1, 3, 50, 50)}))
    assert result.status == "not run"
    assert "50" in result.reason


def test_a_failed_allocation_is_a_failed_guess(monkeypatch):
    class Scarce(run.OnnxRuntime):
        def run(self, feed):
            if feed["x"].size > 5000:
                raise run._cannot(np._core._exceptions._ArrayMemoryError((9, 9), np.dtype(np.float32)))
            if feed["x"].size > 3 * 32 * 32:
                raise run._cannot(RuntimeError("BFCArena: Failed to allocate memory for requested buffer"))
            return super().run(feed)

    monkeypatch.setattr(run, "EVALUATORS", (Scarce,))
    result = verify(chain(1), chain(1, folded=1))
    assert result.status == "passed"

    class Later(run.OnnxRuntime):
        count = 0

        def run(self, feed):
            Later.count += 1
            return super().run(feed) if Later.count == 1 else self.fail()

        def fail(self):
            raise run._cannot(MemoryError())

    monkeypatch.setattr(run, "EVALUATORS", (Later,))
    result = verify(chain(1), chain(1, folded=1))
    assert (result.status, "not enough memory" in result.reason) == ("not run", True)


def test_what_was_tried_is_said_once_with_its_cure():
    node = helper.make_node("Reshape", ["x", "k"], ["y"])
    k = {"k": np.array([51, 53])}
    proto = model([node], [value("x", ["N", 3, "H", "W"])], [value("y", None)], k)
    reason = verify(proto, proto).reason
    assert reason.count("2x3x224x224") == 1
    assert reason.endswith("and 14 more; give the right sizes (shapes=): --overwrite-input-shape x:N,3,H,W")
    assert "Tried" not in verify(proto, proto, Check(shapes={"x": (1, 3, 9, 9)})).reason


def open_models() -> dict[str, onnx.ModelProto]:
    """Conv -> batch norm -> Relu on inputs of free size, of several kinds."""
    made = {}
    kinds = {
        "volume": (3, ["N", 1, "D", "H", "W"]),
        "image": (2, ["N", 3, "H", "W"]),
        "sound": (1, ["N", 1, "T"]),
    }
    for name, (rank, shape) in kinds.items():
        g = Build(seed=1)
        x, strides = g.input("x", shape), [80] if rank == 1 else [1] * rank
        x = g.op("Relu", g.bn(g.conv(x, 16, 400 if rank == 1 else 3, strides=strides)))
        g.output(g.op("Relu", g.bn(g.conv(x, 8))))
        made[name] = g.model()
    g = Build(seed=1)
    x, z = g.input("x", ["N", 3, "H", "W"]), g.input("z", ["N", 3, "H", "W"])
    g.output(g.op("Add", g.bn(g.conv(x, 4)), g.bn(g.conv(z, 4))))
    return made | {"two": g.model()}


@pytest.mark.parametrize("name", ["volume", "image", "sound", "two"])
def test_free_sizes_are_checked_by_default(name):
    _, report = bnfold.fold_onnx(open_models()[name], check="both")
    assert report.folded
    assert report.verification.status == "passed"
    assert report.verification.evaluator.startswith("onnxruntime")


def test_unknown_rank_is_not_run_until_a_shape_is_given():
    proto = linear(2.0)
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    assert verify(proto, proto).status == "not run"
    assert "how many axes its input 'x' has" in verify(proto, proto).reason
    assert verify(proto, proto, Check(shapes={"x": (2, 3)})).status == "passed"
