"""The check of a fold by a proof: what it decides, what it leaves to runs, what it says of a wrong fold."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import bnfold
from bnfold.api import fold_onnx as api
from bnfold.errors import UsageError, VerifyError
from bnfold.onnx_graph.file.loaded import Loaded
from bnfold.verify import process
from tests.onnx_graph.build import Build
from tests.onnx_graph.cases.patterns import PATTERNS


def small() -> onnx.ModelProto:
    g = Build(seed=1)
    g.output(g.op("Relu", g.bn(g.conv(g.input("x", (1, 3, 8, 8)), 4, 3))))
    return g.model()


@pytest.mark.parametrize("apart", [False, True])
def test_a_proof_replaces_the_runs(monkeypatch: pytest.MonkeyPatch, apart: bool) -> None:
    monkeypatch.setattr(process.models, "verify", None)  # nobody compares
    _, report = bnfold.fold_onnx(small(), check="proof", apart=apart)
    found = report.verification
    assert found is not None
    assert (found.status, found.outputs) == ("passed", [])
    assert found.proof is not None
    assert found.to_dict()["proof"]["status"] == "proved"
    assert str(found).startswith("verification by proof: proved: ")
    assert report.certificate is None


def test_both_say_what_they_found() -> None:
    _, report = bnfold.fold_onnx(small(), check="both", certificate=True)
    assert report.verification is not None
    assert report.verification.outputs
    assert len(str(report.verification).splitlines()) == 4
    assert report.certificate is not None


def test_what_is_undecided_is_compared() -> None:
    model = next(case for case in PATTERNS if case.name.startswith("DeformConv")).build()
    _, report = bnfold.fold_onnx(model, check="proof")
    found = report.verification
    assert found is not None
    assert found.proof is not None
    assert found.to_dict()["proof"]["status"] == "undecided"
    assert found.outputs
    assert found.ok


@pytest.mark.parametrize("apart", [False, True])
def test_a_custom_operator_hides_no_sizes_of_what_stands_before_it(apart: bool) -> None:
    """Free sizes are tried out by a run, and nothing runs this model as a whole."""
    model = small()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n"
    mine = onnx.helper.make_node("Mine", [model.graph.output[0].name], ["after"], domain="com.example")
    model.graph.node.append(mine)
    model.graph.output[0].name = "after"
    model.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    _, report = bnfold.fold_onnx(model, apart=apart)
    found = report.verification
    assert found is not None
    assert found.proof is not None
    assert str(found.proof).startswith("proved: ")
    assert found.notes == ["the folded model was not run: onnxruntime runs neither it nor the original here"]


def test_a_wrong_fold_is_refused_at_its_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """By two units in the last place, which no run could show."""
    write = api._write

    def wrong(loaded: Loaded, *work: Any) -> Loaded:
        write(loaded, *work)
        tensor = next(t for t in loaded.proto.graph.initializer if t.name == "conv_weight")
        value = numpy_helper.to_array(tensor).copy()
        value[0, 0, 0, 0] += 2 * np.spacing(np.abs(value[0, 0, 0, 0]))
        loaded.set_array(tensor, value)
        return loaded

    monkeypatch.setattr(api, "_write", wrong)
    bnfold.fold_onnx(small(), check="run")
    with pytest.raises(VerifyError) as caught:
        bnfold.fold_onnx(small(), check="proof")
    said = str(caught.value)
    assert said.startswith(
        "the folded model does not compute the same: conv is wrong, a part of the fold of bn\n"
        "verification by proof: refuted: conv: conv_out: "
    )
    assert "weight of conv at [0, 0, 0, 0]" in said


def test_an_unknown_way_is_refused() -> None:
    with pytest.raises(UsageError, match=r"check='z3' is unknown. Note: valid choices are run, proof, both"):
        bnfold.fold_onnx(small(), check="z3")


def test_types_that_are_none_are_not_known() -> None:
    model = small()
    model.graph.value_info.append(onnx.ValueInfoProto(name="conv_out"))
    model.graph.value_info[-1].type.tensor_type.elem_type = 999
    model.graph.output[0].type.tensor_type.elem_type = 0
    _, report = bnfold.fold_onnx(model, check="proof")
    assert report.verification is not None
    assert report.verification.status != "failed"


def test_a_fault_of_the_proof_leaves_it_to_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    from bnfold.api import checked

    def broken(*_: Any) -> None:
        raise KeyError("gone")

    monkeypatch.setattr(checked, "prove", broken)
    _, report = bnfold.fold_onnx(small(), check="proof")
    found = report.verification
    assert found is not None
    assert (found.status, found.proof) == ("passed", None)
    assert "a fault of bnfold, please report it (KeyError: 'gone')" in found.notes[0]
