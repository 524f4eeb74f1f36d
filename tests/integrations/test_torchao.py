"""Batch norms in torchao's quantization-aware training.

What is asked of torchao is played by a stand-in that does to graphs what torchao 0.18 does, in less time. The
last test is with torchao itself.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, fx, nn

import bnfold
from bnfold.errors import UsageError
from bnfold.integrations import torchao
from bnfold.integrations.torchao import TrainedNorm, convert, prepare_qat, set_training

aten: Any = torch.ops.aten
EXAMPLE = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class FakeQuantize(nn.Module):
    """Rounds to eighths; it has the methods that torchao's has."""

    enable_fake_quant = calculate_qparams = None

    def forward(self, x: Tensor) -> Tensor:
        return torch.round(x * 8) / 8


class Branches(nn.Module):
    """Concatenated convolutions with a batch norm; and a linear layer with one, by choice read twice."""

    def __init__(self, twice: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(8, 1e-2, 0.3)
        self.linear, self.last, self.twice = nn.Linear(8, 6), nn.BatchNorm1d(6, 1e-3), twice

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(torch.cat([self.a(x), self.b(x)], 1)).relu().mean((2, 3))
        y = self.linear(y)
        return self.last(y) + y if self.twice else self.last(y)


class Fused(nn.Module):
    """A batch norm right behind a convolution; and one behind a Relu."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, eps=0.1, momentum=0.3)
        self.behind = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.behind(self.norm(self.conv(x)).relu())
        return y


def captured(net: nn.Module) -> Any:
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.running_var is not None
            module.running_var.uniform_(0.01, 0.2)
    return torch.export.export(net.train(), (EXAMPLE,)).module()


def reset(model: Any, training: bool | None = None) -> None:
    """What torchao does to each batch norm that it touches."""
    for node in model.graph.nodes:
        if str(node.target) == torchao.NORM:
            mode = node.args[5] if training is None else training
            node.args = (*node.args[:5], mode, 0.1, 1e-5, node.args[8])
    model.recompile()


def prepare(model: Any, quantizer: object) -> Any:
    """Rounds what layers and concatenations give; a convolution with a batch norm is written out."""
    reset(model)
    for node in list(model.graph.nodes):
        [norm] = [user for user in node.users if str(user.target) == torchao.NORM] or [None]
        if str(node.target) == "aten.conv2d.default" and norm is not None:
            with model.graph.inserting_before(node):
                total = model.graph.call_function(aten.add.Tensor, (norm.args[4], 1e-5))
                factor = model.graph.call_function(aten.sqrt.default, (total,))
                factor = model.graph.call_function(aten.div.Tensor, (norm.args[1], factor))
                column = model.graph.call_function(aten.reshape.default, (factor, [-1, 1, 1, 1]))
                weight = model.graph.call_function(aten.mul.Tensor, (node.args[1], column))
            with model.graph.inserting_after(node):
                row = model.graph.call_function(aten.reshape.default, (factor, [1, -1, 1, 1]))
            with model.graph.inserting_after(row):
                back = model.graph.call_function(aten.div.Tensor, (node, row))
            node.update_arg(1, weight)
            norm.update_arg(0, back)
        elif str(node.target).startswith(("aten.conv2d", "aten.linear", "aten.cat", "aten.relu")):
            name = f"rounding_{node.name}"
            model.add_submodule(name, FakeQuantize())
            with model.graph.inserting_after(node):
                rounded = model.graph.call_module(name, ())
            node.replace_all_uses_with(rounded)
            rounded.args = (node,)
    model.recompile()
    return model


def fold_fused(model: Any) -> Any:
    """The conversion, as far as batch norms go: those of written-out form are folded with 1e-5."""
    reset(model)
    for node in model.graph.nodes:
        if str(node.target) == "aten.sqrt.default":
            node.args[0].update_arg(1, 1e-5)
    model.recompile()
    return model


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [".".join(("torchao", "quantization", "pt2e", "quantize_pt2e")[:count]) for count in range(1, 5)]
    modules = [ModuleType(name) for name in names]
    for name, module in zip(names, modules, strict=True):
        monkeypatch.setitem(sys.modules, name, module)
    *_, package, functions = modules
    vars(functions).update(prepare_qat_pt2e=prepare, convert_pt2e=fold_fused)
    vars(package).update(
        move_exported_model_to_train=lambda model: reset(model, True),
        move_exported_model_to_eval=lambda model: reset(model, False),
    )


def settings(model: fx.GraphModule) -> list[tuple[float, float]]:
    return [node.args[6:8] for node in model.graph.nodes if str(node.target) == torchao.NORM]


def roundings(model: fx.GraphModule) -> int:
    return sum("rounding" in str(node.target) for node in model.graph.nodes)


def test_what_is_rounded_in_front_of_a_batch_norm_is_not(stand_in: None) -> None:
    prepared, report = prepare_qat(captured(Branches()), None)
    assert [entry._replace(layers=tuple(sorted(entry.layers))) for entry in report] == [
        TrainedNorm("norm", "bnfold", ("conv2d", "conv2d_1"), 3, 1e-2, 0.3, True),
        TrainedNorm("last", "bnfold", ("linear",), 1, 1e-3, 0.1, True),
    ]
    assert roundings(prepared) == 1  # what the Relu gives
    for training in (False, True):
        set_training(prepared, training)
        assert settings(prepared) == [(0.3, 1e-2), (0.1, 1e-3)]


def test_what_others_read_is_rounded_as_before(stand_in: None) -> None:
    prepared, report = prepare_qat(captured(Branches(twice=True)), None)
    assert [entry.outcome for entry in report] == ["bnfold", "stays"]
    assert report[1].layers == ()
    assert report[1].reason == "others read what it normalizes"
    assert roundings(prepared) == 2


def test_the_own_epsilon_of_what_torchao_folds(stand_in: None) -> None:
    net = Fused()
    prepared, report = prepare_qat(captured(net), None)
    assert [(entry.outcome, entry.epsilon, entry.restored) for entry in report] == [
        ("torchao", 0.1, True),
        ("stays", 1e-5, False),
    ]
    assert "fold it before prepare_qat" in report[1].reason
    variance = net.norm.running_var
    assert variance is not None
    before = variance.clone()
    set_training(prepared, False)
    for entry in prepared.modules():
        if isinstance(entry, FakeQuantize):
            entry.forward = lambda x: x  # type: ignore[method-assign]
    exact = net.eval()(EXAMPLE)
    torch.testing.assert_close(prepared(EXAMPLE), exact)
    converted = convert(prepared)
    torch.testing.assert_close(converted_with_1e5(converted), exact, rtol=1e-4, atol=1e-5)
    assert torch.equal(variance, before)


def converted_with_1e5(model: Any) -> Tensor:
    """As torchao's own arithmetic is: the fused batch norm is computed with 1e-5, whatever the graph says."""
    first = next(node for node in model.graph.nodes if str(node.target) == torchao.NORM)
    first.update_arg(7, 1e-5)
    for node in model.graph.nodes:
        if str(node.target) == "aten.sqrt.default":
            node.args[0].update_arg(1, 1e-5)
    model.recompile()
    found: Tensor = model(EXAMPLE)
    return found


def test_what_is_refused(stand_in: None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = captured(Fused())
    for function in (set_training, convert):
        with pytest.raises(UsageError, match="does not come from bnfold's prepare_qat"):
            function(model)
    with pytest.raises(UsageError, match=r"has a batch norm of 'norm\.running_var', and the model has none"):
        torchao.placed(model, {})
    monkeypatch.setitem(sys.modules, "torchao.quantization.pt2e.quantize_pt2e", None)
    with pytest.raises(ImportError, match=r"bnfold needs prepare_qat_pt2e of torchao, tested with"):
        prepare_qat(model, None)


def test_with_torchao_itself(tmp_path: Path) -> None:
    reason = "an environment of before torchao was added to the extra dev"
    pytest.importorskip("torchao.quantization.pt2e.quantize_pt2e", reason=reason)
    quantizer = pytest.importorskip("torchao.testing.pt2e._xnnpack_quantizer", reason=reason)
    how = quantizer.get_symmetric_quantization_config(is_per_channel=True, is_qat=True)
    model = captured(Branches())
    prepared, report = prepare_qat(model, quantizer.XNNPACKQuantizer().set_global(how))
    assert [entry.outcome for entry in report] == ["bnfold", "bnfold"]
    prepared(EXAMPLE).square().mean().backward()
    set_training(prepared, False)
    prepared(EXAMPLE)
    program = torch.export.export(convert(prepared), (EXAMPLE,))
    torch.onnx.export(program, (EXAMPLE,), tmp_path / "q.onnx", dynamo=True, verbose=False)
    exact = onnx.load(tmp_path / "q.onnx")
    folded, after = bnfold.fold_onnx(exact, check="run")
    assert len(after.folded) == 2
    assert not [node for node in folded.graph.node if node.op_type == "BatchNormalization"]
    assert codes(folded) == codes(exact)


def codes(model: onnx.ModelProto) -> list[bytes]:
    kinds = {onnx.TensorProto.INT8}
    arrays = [onnx.numpy_helper.to_array(t) for t in model.graph.initializer if t.data_type in kinds]
    return sorted(np.asarray(array).tobytes() for array in arrays if array.ndim > 1)
