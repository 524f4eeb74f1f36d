"""The names in an exported file: of sizes, inputs and outputs, as in torch.onnx.export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import bnfold
from bnfold.torch_graph.names import rename
from tests.torch_graph.modules import IMAGE, Fn, bn, conv, randomize


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def mlp() -> nn.Module:
    return randomize(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)))


def signature() -> dict[str, list[Any]]:
    """Inputs and outputs of the file, and their shapes."""
    graph = onnx.load("model.onnx").graph
    onnx.checker.check_model("model.onnx", full_check=True)
    return {
        value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }


@pytest.mark.parametrize(("size", "rows"), [("batch", 1), (Dim("batch"), 3), (Dim.AUTO, 1)], ids=str)
def test_a_free_size_keeps_its_name_also_where_the_example_has_one_row(size: Any, rows: int) -> None:
    module, x = mlp(), torch.randn(7, 4)
    report = bnfold.export(module, x[:rows], "model.onnx", dynamic_shapes=({0: size},))
    assert report.verification.ok and len(report.folded) == 1
    [first, *_], [out, *_] = signature().values()
    assert first == out and isinstance(first, str)
    assert first == "batch" or size is Dim.AUTO
    [found] = onnxruntime.InferenceSession("model.onnx").run(None, {"input": x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found, module(x).numpy(), rtol=1e-5, atol=1e-6)


class Parts(nn.Module):
    """Nested inputs, one of which may be missing."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.b = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor, mask: Tensor | None, more: dict[str, Tensor], *, last: Tensor) -> Tensor:
        y: Tensor = self.b(self.c(x)) + more["a"]
        return y.sum(0) + last.sum(0)


def test_names_follow_the_structure_of_the_inputs() -> None:
    a, b = torch.randn(3, 4), torch.randn(5, 4)
    shapes = {
        "x": {0: "rows"},
        "mask": None,
        "more": {"a": {0: Dim("equal")}},
        "last": {0: Dim("others")},
    }
    report = bnfold.export(
        randomize(Parts()), (a, None, {"a": a}), "model.onnx", {"last": b}, dynamic_shapes=shapes
    )
    assert [shape[0] for shape in signature().values()] == ["rows", "rows", "others", 4]
    assert [note for note in report.notes if "size" in note] == [
        "no size is called equal in the file: torch found it to be fixed, or equal to another"
    ]


def test_a_size_that_the_code_fixes_is_a_number() -> None:
    bnfold.export(
        Fn(lambda m, x: x.reshape(3, 4) + 1), torch.ones(3, 4), "model.onnx", dynamic_shapes=({0: Dim.AUTO},)
    )
    assert list(signature().values()) == [[3, 4], [3, 4]]


def test_a_size_that_must_be_even() -> None:
    """torch.onnx.export takes it; torch.export.export by itself does not."""
    half = Fn(
        lambda m, x: torch.cat([x, m.u(m.c(x))], 1),
        c=conv(1, 2, stride=2, padding=1),
        u=nn.Upsample(scale_factor=2),
    )
    sizes = ({2: Dim("height"), 3: "width"},)
    assert bnfold.export(
        half.eval(), torch.randn(1, 1, 8, 8), "model.onnx", dynamic_shapes=sizes
    ).verification.ok
    assert list(signature().values()) == [[1, 1, "height", "width"], [1, 3, "height", "width"]]


def test_what_torch_suggests_is_told() -> None:
    with pytest.raises(
        bnfold.UsageError, match=r"Constraints violated \(n\)!(.|\n)*Suggested fixes:\n  n = 3$"
    ):
        bnfold.export(
            Fn(lambda m, x: x.reshape(3, 4) + 1),
            torch.ones(3, 4),
            "model.onnx",
            dynamic_shapes=({0: Dim("n")},),
        )


def test_inputs_and_outputs_are_called_as_asked() -> None:
    """An output that is an input, a stored value or another output gets a name of its own."""

    def forward(m: Any, x: Tensor) -> Any:
        y = m.b(m.c(x))
        return x, y, y, m.c.weight, y + 1

    module = randomize(Fn(forward, c=conv(6, 4), b=bn(4)))
    outputs = ["same", "score", "copy", "add"]
    report = bnfold.export(
        module, torch.randn(IMAGE), "model.onnx", input_names=["conv2d"], output_names=outputs
    )
    assert report.verification.ok
    assert list(signature()) == ["conv2d", *outputs, "add_1"]
    assert [error.name for error in report.verification.outputs] == [*outputs, "add_1"]


def test_names_that_do_not_fit_are_refused() -> None:
    def graph() -> onnx_ir.Graph:
        x = onnx_ir.Value(name="x")
        node = onnx_ir.node("Relu", [x])
        return onnx_ir.Graph([x], node.outputs, nodes=[node], name="g")

    for inputs, outputs, said in (
        (["a", "b"], [], r"input_names=\['a', 'b'\] do not name the inputs one each: x"),
        ("x", [], r"input_names=\['x'\] do not name the inputs one each: x"),
        ([], [""], r"output_names=\[''\] do not name the outputs one each: "),
        ([], ["x"], "'x' would be the name of two inputs or outputs"),
        (["y"], ["y"], "'y' would be the name of two inputs or outputs"),
    ):
        with pytest.raises(bnfold.UsageError, match=said):
            rename(graph(), inputs, outputs)
    path = Path("model.onnx")
    with pytest.raises(bnfold.UsageError, match="do not name the inputs one each"):
        bnfold.export(Fn(lambda m, x: x + 1), torch.ones(2), path, input_names=["a", "b"])
    assert not path.exists()


def test_older_keywords_of_torch_are_told_by_ours() -> None:
    with pytest.raises(
        bnfold.UsageError, match=r'no dynamic_axes, .*: dynamic_shapes=\(\{0: "batch"\},\) says'
    ):
        bnfold.export(mlp(), torch.ones(1, 4), "model.onnx", dynamic_axes={"input": {0: "batch"}})
    with pytest.raises(bnfold.UsageError, match=r"export has no opset_version, .*: opset says it here"):
        bnfold.export(mlp(), torch.ones(1, 4), "model.onnx", opset_version=18)
