"""What torch's tracers and its exporter to ONNX need help with."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn
from torch.nn.functional import batch_norm, conv2d, dropout, scaled_dot_product_attention
from torch.nn.utils import parametrize

import bnfold
from bnfold.torch_graph import to_onnx
from bnfold.torch_graph.module.checks import exported
from tests.torch_graph.modules import Fn, bn, conv, randomize


class Masked(nn.Module):
    """The longest of many lengths makes the mask: its value is needed to trace it."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.b = nn.Conv1d(4, 8, 1), nn.BatchNorm1d(8)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        mask = torch.arange(int(lengths.max()))[None] < lengths[:, None]
        y: Tensor = self.b(self.c(x)) * mask[:, None]
        return y


def test_a_mask_from_lengths(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    inputs = torch.randn(2, 4, 9), torch.tensor([9, 5])
    report = bnfold.export(randomize(Masked()), inputs, tmp_path / "model.onnx")
    assert (len(report.folded), report.verification.status) == (1, "passed")
    assert capfd.readouterr().err == ""  # nothing of the try that failed


def test_a_module_is_traced_for_a_fold_as_it_is_for_an_export(capfd: pytest.CaptureFixture[str]) -> None:
    """A size is free by its name, and one in the example; what the module prints is seen."""

    def forward(m: Any, x: Tensor) -> Tensor:
        print("printed", file=sys.stderr)
        return m.b(m.c(x))

    module = randomize(Fn(forward, c=conv(6, 4), b=bn(4)))
    _, program = exported(module, (torch.randn(1, 6, 5, 5),), {}, ({0: "batch"},))
    [x] = [node.meta["val"] for node in program.graph.nodes if node.name == "x"]
    assert not isinstance(x.shape[0], int) and x.shape[1:] == (6, 5, 5)
    assert "printed" in capfd.readouterr().err


def test_convolutions_without_a_bias_have_none(tmp_path: Path) -> None:
    """torch 2.13 gives the 3-d one a bias of two axes, which nothing runs."""
    options = {"stride": 2, "padding": 1, "dilation": 2, "groups": 2, "bias": False}
    kinds = {
        f"x{rank}": kind(4, 6, 3, **options) for rank, kind in enumerate((nn.Conv1d, nn.Conv2d, nn.Conv3d), 1)
    }

    class All(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleDict(kinds)

        def forward(self, x1: Tensor, x2: Tensor, x3: Tensor) -> Any:
            return [self.layers[name](x) for name, x in (("x1", x1), ("x2", x2), ("x3", x3))]

    xs = tuple(torch.randn(2, 4, *[9] * rank) for rank in (1, 2, 3))
    module, path = All().eval(), tmp_path / "model.onnx"
    to_onnx.write(module, xs, {}, path)
    assert [(node.op_type, len(node.input)) for node in onnx.load(path).graph.node] == [("Conv", 2)] * 3
    feed = {name: x.numpy() for name, x in zip(kinds, xs, strict=True)}
    with torch.no_grad():
        for found, y in zip(ReferenceEvaluator(str(path)).run(None, feed), module(*xs), strict=True):
            np.testing.assert_allclose(found, y.numpy(), rtol=1e-4, atol=1e-5)


class Standardized(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return conv2d(x, w / (w.std((1, 2, 3), keepdim=True) + 1e-5), self.bias)


class Normalized(nn.Conv2d):
    """As NFNet has it."""

    def forward(self, x: Tensor) -> Tensor:
        rows = self.weight.reshape(1, self.out_channels, -1)
        return conv2d(
            x, batch_norm(rows, None, None, training=True, eps=1e-6).reshape_as(self.weight), self.bias
        )


class Binary(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return conv2d(x, self.weight.sign() * self.weight.abs().mean((1, 2, 3), keepdim=True), self.bias)


def test_weights_that_are_computed_from_stored_ones(tmp_path: Path) -> None:
    """torch's exporter computes them in the file, and a fold stores them."""
    kinds = [
        nn.utils.parametrizations.weight_norm(conv(3, 4)),
        nn.utils.parametrizations.spectral_norm(conv(4, 4)),
        Standardized(4, 4, 3),
        Normalized(4, 4, 1),
        Binary(4, 4, 3),
    ]
    module = randomize(nn.Sequential(*(part for kind in kinds for part in (kind, bn(4), nn.ReLU()))))
    report = bnfold.export(module, torch.randn(1, 3, 12, 12), tmp_path / "model.onnx")
    assert (len(report.folded), report.kept, report.verification.status) == (5, [], "passed")
    nodes = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert nodes == ["Conv", "Relu"] * 5


RANDOM: dict[str, tuple[Callable[[Tensor], Any], list[str]]] = {
    "drop-out that is always on": (lambda x: dropout(x, 0.5, True), ["dropout"]),
    "of nothing": (lambda x: dropout(x, 0.0, True), []),
    "off": (lambda x: dropout(x, 0.5, False), []),
    "noise": (lambda x: x + torch.randn_like(x), ["randn_like"]),
    "attention": (lambda x: scaled_dot_product_attention(x[None], x[None], x[None]), []),
}


def test_what_draws_random_numbers_is_found(tmp_path: Path) -> None:
    def forward(m: Any, x: Tensor) -> Any:
        return [function(x) for function, _ in RANDOM.values()]

    written = to_onnx.write(Fn(forward).eval(), (torch.randn(2, 3, 4),), {}, tmp_path / "model.onnx")
    assert written.random == [name for _, names in RANDOM.values() for name in names]


def test_random_outputs_are_refused_by_name_or_noted(tmp_path: Path) -> None:
    """A flag that was baked in training mode, say: nothing can tell the file's numbers from the module's."""

    class Always(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return dropout(x, 0.5, True)

    module, x, path = (
        nn.Sequential(conv(3, 4), Always()).eval(),
        torch.randn(1, 3, 5, 5),
        tmp_path / "model.onnx",
    )
    with pytest.raises(bnfold.UsageError, match=r"^1 draws random numbers in inference too .*verify=False"):
        bnfold.export(module, x, path)
    assert not path.exists()
    assert "1 draws random numbers, in the file as well" in bnfold.export(module, x, path, verify=False).notes


def test_what_a_module_writes_is_told(tmp_path: Path) -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c, self.b = conv(3, 4), bn(4)
            self.register_buffer("calls", torch.full((), 4.0))

        def forward(self, x: Tensor) -> Tensor:
            self.calls.add_(1)
            return self.b(self.c(x)) * self.calls

    module = randomize(Counting())
    report = bnfold.export(module, torch.randn(1, 3, 5, 5), tmp_path / "model.onnx")
    assert report.verification.ok
    assert report.notes == ["the module writes into calls; the file does not, and keeps today's values"]
    assert float(module.calls) == 4


class Exponential(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.exp()


def test_a_parametrized_batch_norm_is_folded_if_its_parametrization_may_go() -> None:
    module = randomize(nn.Sequential(conv(3, 4), bn(4), nn.ReLU()))
    for name in ("weight", "bias"):
        parametrize.register_parametrization(module[1], name, Exponential())
    x = torch.randn(1, 3, 5, 5)
    folded, report = bnfold.fold_module(module, x, parametrizations="remove")
    assert (len(report.folded), report.verification.status) == (1, "passed")
    assert isinstance(folded[1], nn.Identity)
    assert parametrize.is_parametrized(module[1])


def test_a_shift_alone_that_a_layer_with_a_parametrized_weight_takes() -> None:
    """Its weight has the same numbers, and its bias is new."""

    def forward(m: Any, x: Tensor) -> Tensor:
        return torch.sigmoid(m.b(torch.relu(m.c(x))) + m.d(x))

    other = nn.utils.parametrizations.weight_norm(conv(3, 4, bias=False))
    module = randomize(Fn(forward, c=conv(3, 4), b=bn(4), d=other), negative=False)
    x = torch.randn(1, 3, 5, 5)
    folded, report = bnfold.fold_module(module, x, parametrizations="remove")
    assert ([entry.into for entry in report.folded], report.verification.status) == ([("c", "d")], "passed")
    assert torch.equal(folded.d.weight, module.d.weight)
    assert folded.d.bias is not None
