"""From torch to an engine: exported, folded for TensorRT, parsed and built by TensorRT-RTX without a GPU."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

import bnfold
from bnfold.onnx_graph.file.loaded import load
from bnfold.tensorrt import engine
from bnfold.tensorrt.layers import Placement
from bnfold.tensorrt.model import ParseError
from tests.deployed import NETS, export, made
from tests.tensorrt import models


def placed(model: Path | onnx.ModelProto) -> Placement:
    built = engine.build(load(model), flavour="tensorrt-rtx", compute_capabilities=["8.0"])
    assert bytes(built.plan)[:4] == b"vtrt"
    assert built.placement is not None
    return built.placement


@pytest.mark.parametrize("raw", [False, True], ids=["default", "raw"])
@pytest.mark.parametrize("name", NETS)
def test_each_export_is_parsed_and_built(name: str, raw: bool, tmp_path: Path) -> None:
    module, inputs = made(name)
    export(module, inputs, tmp_path / "net.onnx", raw)
    folded, report = bnfold.fold_onnx(tmp_path / "net.onnx", target="tensorrt")
    assert report.verification.ok
    if raw:  # as it is, TensorRT refuses each of them, and says what helps
        with pytest.raises(ParseError, match=r"`bnfold fold --target tensorrt`"):
            placed(tmp_path / "net.onnx")
    norms = placed(folded).batch_norms
    assert tuple(place.op.removeprefix("bnfold.") for place in norms) == NETS[name][2]
    assert {place.outcome for place in norms} <= {"stand-alone"}


def test_a_folded_net_has_no_batch_norm_layer_and_an_unfolded_one_has(tmp_path: Path) -> None:
    module, inputs = made("pre-activation ResNet")
    export(module, inputs, tmp_path / "net.onnx", raw=False)
    unfolded = placed(tmp_path / "net.onnx")
    assert [place.outcome for place in unfolded.batch_norms] == ["stand-alone"] * 3
    folded = placed(bnfold.fold_onnx(tmp_path / "net.onnx", target="tensorrt")[0])
    assert folded.batch_norms == ()

    def on_convs(placement: Placement) -> int:
        return sum(place.outcome == "fused" for place in placement.relus)

    assert on_convs(folded) > on_convs(unfolded)


def test_in_a_chain_the_relu_sits_on_the_conv_layer() -> None:
    unfolded = placed(models.chain())
    assert [place.outcome for place in unfolded.batch_norms] == ["stand-alone"]
    folded = placed(bnfold.fold_onnx(models.chain(), target="tensorrt")[0])
    [relu] = folded.relus
    assert (folded.batch_norms, relu.outcome, relu.hosts) == ((), "fused", ("conv",))
    assert not [layer.name for layer in folded.layers if "MulAdd" in layer.name]
