"""Where each batch norm went: the list of layers, and what TensorRT-RTX really makes of small nets."""

from __future__ import annotations

import onnx
import pytest

import bnfold
from bnfold.onnx_graph.file.loaded import load
from bnfold.tensorrt import engine
from bnfold.tensorrt.layers import EngineLayer, ModelNode, Placement, layers_in, placement
from tests.tensorrt import models

LISTED = """\
Layers:
Name: __myl_Move_0, LayerType: kgen, Inputs: [ { Name: x, Dimensions: [1] }], TacticName: , Metadata:\x20
Name: conv_1, LayerType: correlation, Inputs: [], StreamId: 0, Metadata: [ONNX Layer: c]\x1f[ONNX Layer: r]
Name: a_2, LayerType: kgen, Inputs: [], Metadata: [ONNX Layer: bn2]\x1e[ONNX Layer: mul | n (BnfoldBatchNorm)]
Name: a_3, LayerType: kgen, Inputs: [], Metadata: [ONNX Layer: add | n (BnfoldBatchNorm)][ONNX Layer: bn2]

I/O Tensors:
 Name: x, IOMode: Input, DataType: Float
"""


def built(model: object, **options: object) -> Placement:
    done = engine.build(load(model), flavour="tensorrt-rtx", compute_capabilities=["8.0"], **options)  # type: ignore[arg-type]
    assert done.placement is not None
    return done.placement


def outcomes(placement: Placement) -> dict[str, tuple[str, tuple[str, ...]]]:
    return {p.name: (p.outcome, p.hosts) for p in (*placement.batch_norms, *placement.relus)}


def operators(placement: Placement) -> str:
    """The names of the layers that TensorRT made up, which tell what they compute."""
    return " ".join(layer.name for layer in placement.layers)


# -- the list as a text


def test_a_list_is_read() -> None:
    assert layers_in(LISTED, {"c": "conv one"}) == [
        EngineLayer("__myl_Move_0", "kgen", ()),
        EngineLayer("conv_1", "correlation", (("conv one",), ("r",))),
        EngineLayer("a_2", "kgen", (("bn2",), ("mul", "n"))),
        EngineLayer("a_3", "kgen", (("add", "n"), ("bn2",))),
    ]
    assert layers_in("Engine generation completed in 0.03 seconds.", {}) == []


def test_nodes_are_placed() -> None:
    nodes = [
        *(ModelNode("c", "Conv"), ModelNode("r", "Relu"), ModelNode("bn1", "BatchNormalization")),
        *(
            ModelNode("bn2", "BatchNormalization"),
            ModelNode("n", "bnfold.BnfoldBatchNorm"),
            ModelNode("mul", "Mul"),
        ),
    ]
    placed = placement(nodes, layers_in(LISTED, {}))
    assert [(p.name, p.outcome, p.layers, p.hosts) for p in placed.batch_norms] == [
        ("bn1", "absent", (), ()),
        ("bn2", "stand-alone", ("a_2", "a_3"), ()),
        ("n", "stand-alone", ("a_2", "a_3"), ()),
    ]
    assert [(p.name, p.outcome, p.layers, p.hosts) for p in placed.relus] == [
        ("r", "fused", ("conv_1",), ("c",))
    ]
    assert placed.summary == (
        "3 batch norms: 0 in the layer of a conv or matmul, 2 stand-alone, 1 without a layer"
    )
    told = str(placed).splitlines()
    assert told[2].split()[:5] == ["bn1", "BatchNormalization", "no", "layer:", "it"]
    assert told[-1] == "relu: 1 of 1 in the layer of a conv or matmul"
    assert placed.to_dict()["layers"][2] == {"name": "a_2", "type": "kgen", "nodes": ["bn2", "mul in n"]}


def test_one_layer_with_a_conv_and_one_without_is_not_fused() -> None:
    layers = [EngineLayer("a", "", (("c",), ("bn",))), EngineLayer("b", "", (("bn",),))]
    [norm] = placement([ModelNode("c", "Conv"), ModelNode("bn", "BatchNormalization")], layers).batch_norms
    assert (norm.outcome, norm.hosts, norm.layers) == ("stand-alone", ("c",), ("a", "b"))


def test_a_layer_that_adds_a_convs_bias_is_not_the_convs() -> None:
    nodes = [
        ModelNode("c", "Conv"),
        ModelNode("m", "Gemm"),
        ModelNode("bn", "BatchNormalization"),
        ModelNode("r", "Relu"),
    ]
    layers = [
        EngineLayer("conv_0", "correlation", (("c",),)),
        EngineLayer("MulAdd_1", "kgen", (("bn",), ("c",))),
        EngineLayer("MulSumRelu_2", "kgen", (("m",), ("r",))),
    ]
    placed = placement(nodes, layers)
    assert [(p.outcome, p.hosts) for p in placed.batch_norms] == [("stand-alone", ())]
    assert [(p.outcome, p.hosts) for p in placed.relus] == [("fused", ("m",))]


# -- what TensorRT-RTX makes


def test_a_chain_has_a_batch_norm_of_its_own_until_it_is_folded() -> None:
    before, after = built(models.chain()), built(models.folded(models.chain()))
    assert outcomes(before) == {"bn": ("stand-alone", ()), "relu": ("stand-alone", ())}
    assert "MulAdd" in operators(before)
    assert outcomes(after) == {"relu": ("fused", ("conv",))}
    assert "MulAdd" not in operators(after)
    assert after.summary == "no batch norm in the model"


def test_a_residual_net_loses_all_of_them() -> None:
    model = models.residual()
    before, after = built(model), built(models.folded(model))
    assert len(before.batch_norms) == 8
    # TensorRT-RTX puts some behind the conv, into a kernel that it generates; they are computed nevertheless
    own = [place.name for place in before.batch_norms if place.outcome == "stand-alone"]
    assert own == ["2.b.bn"]
    assert {place.hosts for place in before.batch_norms} == {
        (),
        *((place.name.replace(".bn", ".conv"),) for place in before.batch_norms if place.name not in own),
    }
    assert operators(before).count("MulAdd") == 8

    assert after.batch_norms == ()
    assert "MulAdd" not in operators(after)
    found = outcomes(after)
    assert found["stem.relu"] == ("fused", ("stem.conv",))
    assert found["0.relu"] == ("fused", ("0.short.conv",))
    assert found["1.relu"] == ("fused", ("1.b.conv",))
    assert {outcome for outcome, _ in found.values()} == {"fused"}
    assert len(found) == 7


def test_a_batch_norm_before_a_relu_stays() -> None:
    placed = built(models.folded(models.preactivated()))
    assert outcomes(placed) == {"bn": ("stand-alone", ()), "relu": ("stand-alone", ())}


def test_our_operators_are_told_by_their_calls() -> None:
    placed = built(models.ours())
    assert [place.name for place in placed.batch_norms] == ["norm0", "norm1"]
    assert [place.op for place in placed.batch_norms] == ["bnfold.BnfoldBatchNormRelu"] * 2
    assert all(place.layers for place in placed.batch_norms)
    assert {place.name for place in placed.relus} == {"act in norm0", "act in norm1"}


def test_nodes_with_bad_names_are_found_as_well() -> None:
    model = models.chain()
    for node, name in zip(
        model.graph.node, ["a], LayerType: x, [ONNX Layer: q]", "b\nName: u | v", ""], strict=True
    ):
        node.name = name
    relu = f"Relu:{model.graph.node[2].output[0]}"
    before, after = built(model), built(models.folded(model))
    assert outcomes(before) == {"b\nName: u | v": ("stand-alone", ()), relu: ("stand-alone", ())}
    assert outcomes(after) == {relu: ("fused", ("a], LayerType: x, [ONNX Layer: q]",))}

    for node in model.graph.node:
        node.name = "same"
    y = [node.output[0] for node in model.graph.node]
    assert outcomes(built(model)) == {
        f"same:{y[1]}": ("stand-alone", ()),
        f"same:{y[2]}": ("stand-alone", ()),
    }


@pytest.mark.parametrize("exporter", ["raw", "optimized"])
def test_what_torch_exports(exporter: str) -> None:
    """A residual block, with a batch norm behind each of its three convs."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from tests.api.test_torch_exports import Residual, randomized

    x = torch.randn(2, 6, 7, 5)
    program = torch.onnx.export(randomized(Residual), (x,), dynamo=True, optimize=False, verbose=False)
    if exporter == "optimized":
        program.optimize()  # which folds batch norms behind convs by itself
    model = onnx.ModelProto.FromString(program.model_proto.SerializeToString())
    folded, report = bnfold.fold_onnx(model)
    before, after = built(model), built(folded)
    assert len(before.batch_norms) == len(report.folded) == (3 if exporter == "raw" else 0)
    assert operators(before).count("MulAdd") >= len(report.folded)
    assert after.batch_norms == ()
    assert "MulAdd" not in operators(after)
    assert [place.outcome for place in after.relus] == ["fused", "fused"]
