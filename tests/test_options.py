"""The option objects: checked once, the same in every function, refused by name where they do not apply."""

from __future__ import annotations

import inspect
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import onnx
import pytest
import torch
from torch import nn

import bnfold
from bnfold.errors import UsageError
from bnfold.options import Check, CheckKeywords, Fold, FoldKeywords, refuse_others
from tests.onnx_graph.build import Build

EVERY = {field.name for field in (*fields(Check), *fields(Fold))} - {"ranges"}
FUNCTIONS = {
    "fold_onnx": EVERY,
    "export": EVERY
    - {"inputs", "shapes", "seed", "freeze_initializers", "certificate", "check", "calibration"},
    "equalize_onnx": EVERY - {"target", "precision", "certificate", "check"},
    "fold_program": {
        *("verify", "inputs", "rtol", "atol", "check", "shared", "skip", "merge_branches", "quantize_for"),
    },
    "fold_module": {"verify", "rtol", "atol", "shared", "skip"},
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_option_is_taken_or_refused_by_name(name: str) -> None:
    parameters = inspect.signature(getattr(bnfold, name)).parameters
    assert {option for option in EVERY if option in parameters} == FUNCTIONS[name]
    for option in sorted(EVERY - FUNCTIONS[name]):
        with pytest.raises(UsageError, match=rf"{name} has no {option}: "):
            call(name, **{option: None})
    with pytest.raises(TypeError, match="unexpected keyword argument 'skipp'"):
        call(name, skipp=())


def call(name: str, **options: Any) -> Any:
    """The function on arguments that it would take; options are looked at before them."""
    given = {"export": (torch.nn.ReLU(), torch.ones(1), "no/such/folder/x.onnx"), "fold_module": (None, None)}
    return getattr(bnfold, name)(*given.get(name, (None,)), **options)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_defaults_are_the_same_everywhere(name: str) -> None:
    defaults = {field.name: field.default for field in (*fields(Check), *fields(Fold))}
    for option, parameter in inspect.signature(getattr(bnfold, name)).parameters.items():
        if option in FUNCTIONS[name]:
            assert parameter.default == defaults[option], option


def test_the_keywords_of_the_types_are_the_fields() -> None:
    assert set(get_type_hints(FoldKeywords)) == {field.name for field in fields(Fold)}
    assert set(get_type_hints(CheckKeywords)) == {field.name for field in fields(Check)} - {"ranges"}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: Fold(shared="copy"),
            "shared='copy' is unknown. Note: valid choices are duplicate, skip, error",
        ),
        (lambda: Fold(target="trt"), "target='trt' is unknown. Note: valid choices are onnx, tensorrt"),
        (lambda: Fold(precision="int8"), "precision='int8' is unknown. Note: valid choices are fp16, bf16"),
        (
            lambda: Fold(quantize_for="int9"),
            "quantize_for='int9' is unknown. Note: valid choices are int8, int8-per-tensor, int4",
        ),
        (lambda: Fold(quantize_for="int8", merge_branches=False), "merge_branches=False that nothing is"),
        (lambda: Fold(skip="bn1"), "skip takes a collection of names, not one string"),
        (lambda: Fold(input_ranges={"x": (0, 1)}), "nothing to do unless dead channels are dropped"),
        (lambda: Check(rtol=-1.0), "rtol=-1.0 is not a number from 0 on"),
        (lambda: Check(timeout=0), "timeout=0 is not a number of seconds above 0"),
        (lambda: Check(atol=float("nan")), "atol=nan is not a number from 0 on"),
        (
            lambda: Check(inputs={"x": 1}, shapes={"x": (1,)}),
            "inputs, or shapes of inputs to generate, not both",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_before_any_work(make: Any, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        make()
    assert said in str(caught.value)


def test_options_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Fold().shared = "skip"  # type: ignore[misc]
    with pytest.raises(AttributeError):
        Check().rtol = 1.0  # type: ignore[misc]


def test_an_option_of_no_function_is_pythons_own_error() -> None:
    refuse_others("f", {}, "")
    with pytest.raises(TypeError, match=r"f\(\) got an unexpected keyword argument 'depth'"):
        refuse_others("f", {"depth": 1}, "")


def small() -> onnx.ModelProto:
    """Conv -> batch norm whose scales are zero in a third of the channels -> Relu -> conv."""
    g = Build(seed=1)
    x = g.bn(g.conv(g.input("x", (1, 3, 8, 8)), 6), signs="zero or positive")
    g.output(g.conv(g.op("Relu", x), 2))
    return g.model()


def test_equalize_honours_what_it_takes_of_the_fold() -> None:
    model = small()
    kept, _ = bnfold.equalize_onnx(model)
    dropped, report = bnfold.equalize_onnx(model, drop_dead_channels=True)
    assert [width(proto) for proto in (kept, dropped)] == [6, 4]
    assert report.fold is not None
    assert report.fold.dropped is not None
    assert report.verification is None or report.verification.ok
    bnfold.equalize_onnx(model, fold=False, skip=[], input_ranges={})
    with pytest.raises(UsageError, match="drop_dead_channels is about the fold"):
        bnfold.equalize_onnx(model, fold=False, drop_dead_channels=True)


def test_export_honours_what_fold_onnx_does(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 1)).eval()
    with torch.no_grad():
        net[0].weight.fill_(1.0)
        net[0].weight[2] = -1.0  # never above 0, if the input is never below
        net[0].bias.fill_(0.0)
        net[1].weight[:2] = 0
    x = torch.rand(1, 3, 8, 8)
    path = tmp_path / "half.onnx"
    name = "input"
    report = bnfold.export(
        net, x, path, precision="fp16", drop_dead_channels=True, input_ranges={name: (0.0, 1.0)}
    )
    model = onnx.load(path)
    assert width(model) == 3  # without ranges 4
    assert {tensor.data_type for tensor in model.graph.initializer} == {onnx.TensorProto.FLOAT16}
    assert report.precision is not None
    assert report.precision.status == "passed"
    assert report.verification is not None
    assert report.verification.ok
    with pytest.raises(UsageError, match="leave its range"):
        bnfold.export(net, x + 1, path, force=True, drop_dead_channels=True, input_ranges={name: (0.0, 1.0)})


def width(model: onnx.ModelProto) -> int:
    """Output channels of the first convolution."""
    name = next(node.input[1] for node in model.graph.node if node.op_type == "Conv")
    return int(next(tensor.dims[0] for tensor in model.graph.initializer if tensor.name == name))
