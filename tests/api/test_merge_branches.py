"""Blocks that are trained with branches, written by hand: merged in exported programs and in ONNX exports.

Each is held against the module in float64, and against how many linear nodes its authors' own switch leaves.
"""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

import bnfold
from bnfold.errors import VerifyError
from tests.onnx_graph import look
from tests.torch_graph.modules import randomize

ROUNDING = 2e-6  # of the output's largest value, in float32
LINEAR = ("conv1d", "conv2d", "conv3d", "convolution", "linear", "addmm", "matmul", "mm")


def unit(inputs: int, outputs: int, k: int = 1, **options: Any) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, k, padding=k // 2, bias=False, **options)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class RepVGG(nn.Module):
    """3 x 3, 1 x 1 and a batch norm of the input (Ding et al., 2021); with a stride without the last."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.dense = unit(inputs, outputs, 3, stride=stride, groups=groups)
        self.point = unit(inputs, outputs, 1, stride=stride, groups=groups)
        self.same = nn.BatchNorm2d(inputs) if stride == 1 and inputs == outputs else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.dense(x) + self.point(x)
        return torch.relu(y if self.same is None else y + self.same(x))


class MobileOne(nn.Module):
    """Several branches of one form, a 1 x 1 and a batch norm, summed from 0 on (Vasu et al., 2023)."""

    def __init__(self, channels: int, k: int, groups: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList([unit(channels, channels, k, groups=groups) for _ in range(3)])
        self.scale = unit(channels, channels, 1, groups=groups) if k > 1 else None
        self.same = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Any = 0
        if self.scale is not None:
            y = self.scale(x)
        y = y + self.same(x)
        for branch in self.branches:
            y += branch(x)
        return torch.relu(y)


class RepMixer(nn.Module):
    """x + gamma * (mixer(x) - norm(x)) (Vasu et al., FastViT, 2023)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.mixer = nn.BatchNorm2d(channels), MobileOne(channels, 3, channels)
        self.mixer.forward = self.summed  # type: ignore[method-assign]
        self.gamma = nn.Parameter(torch.randn(channels, 1, 1))

    def summed(self, x: Tensor) -> Tensor:
        y = self.mixer.scale(x) + self.mixer.same(x)  # type: ignore[misc]
        for branch in self.mixer.branches:
            y = y + branch(x)
        return y

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x + self.gamma * (self.mixer(x) - self.norm(x)))


class Diverse(nn.Module):
    """3 x 3, 1 x 1, 1 x 3, 3 x 1, and a 1 x 1 before a 3 x 3 (Ding et al., 2021)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dense, self.point = unit(channels, channels, 3), unit(channels, channels)
        self.flat = nn.Conv2d(channels, channels, (1, 3), padding=(0, 1))
        self.upright = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0))
        self.before = nn.Conv2d(channels, channels, 1, bias=False)
        self.behind = unit(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.dense(x) + self.point(x) + self.flat(x) + self.upright(x)
        return torch.relu(y + self.behind(self.before(x)))


class RepViT(nn.Module):
    """A batch norm of a 3 x 3 and a 1 x 1, both depthwise, and the input; two heads (Wang et al., 2024)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dense = unit(channels, channels, 3, groups=channels)
        self.point = nn.Conv2d(channels, channels, 1, groups=channels)
        self.norm, self.mean = nn.BatchNorm2d(channels), nn.BatchNorm1d(channels)
        self.heads = nn.ModuleList([nn.Linear(channels, 5), nn.Linear(channels, 5)])

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dense(x) + self.point(x) + x)
        y = self.mean(torch.nn.functional.gelu(y).mean((2, 3)))
        return (self.heads[0](y) + self.heads[1](y)) / 2


CASES: dict[str, tuple[Any, int]] = {
    "RepVGG": (lambda: nn.Sequential(RepVGG(6, 6), RepVGG(6, 8, 2), RepVGG(8, 8, groups=4)), 3),
    "MobileOne": (lambda: nn.Sequential(MobileOne(6, 3, 6), MobileOne(6, 1, 1)), 2),
    "RepMixer": (lambda: nn.Sequential(RepMixer(6)), 1),
    "diverse branches": (lambda: nn.Sequential(Diverse(6)), 1),
    "RepViT": (lambda: RepViT(6), 2),
}


def made(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """The module, an input, and what it gives in float64."""
    torch.manual_seed(len(name))
    module, x = randomize(CASES[name][0]()).eval(), torch.randn(2, 6, 9, 8)
    with torch.no_grad():
        return module, x, copy.deepcopy(module).double()(x.double())


def off(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).abs().max() / exact.abs().max())


def ops(program: Any) -> Counter[str]:
    calls = (node for node in program.graph.nodes if node.op == "call_function")
    return Counter(str(node.target).split(".")[-2] for node in calls)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_program(name: str, dynamic: bool) -> None:
    module, x, exact = made(name)
    free = torch.export.Dim.AUTO
    shapes = ({0: free, 2: free, 3: free},) if dynamic else None
    program = torch.export.export(module, (x,), dynamic_shapes=shapes)
    before = {key: value.clone() for key, value in program.state_dict.items()}
    folded, report = bnfold.fold_program(program)
    left = ops(folded)
    assert sum(left[op] for op in LINEAR) == CASES[name][1], report
    assert left["batch_norm"] == left["add"] == left["add_"] == left["mul"] == left["sub"] == 0, left
    assert not report.kept
    assert report.verification.ok
    with torch.no_grad():
        assert off(folded.module()(x), exact) < ROUNDING
    assert len(folded.state_dict) == 2 * CASES[name][1]  # a weight and a bias each
    for key, value in program.state_dict.items():  # what was given is as it was
        assert torch.equal(value, before[key])
    again, nothing = bnfold.fold_program(folded)
    assert again is folded
    assert not nothing.merged


@pytest.mark.parametrize("name", CASES)
def test_export(name: str) -> None:
    module, x, exact = made(name)
    with torch.no_grad():
        program = torch.onnx.export(module, (x,), dynamo=True, optimize=False, verbose=False)
    assert program is not None
    raw = onnx.ModelProto.FromString(program.model_proto.SerializeToString())
    program.optimize()
    for model in (raw, program.model_proto):
        folded, report = bnfold.fold_onnx(model)
        left = Counter(node.op_type for node in folded.graph.node)
        assert left["Conv"] + left["Gemm"] + left["MatMul"] == CASES[name][1], report
        assert left["BatchNormalization"] == left["Add"] == left["Mul"] == left["Sub"] == 0, left
        (found,) = look.run(folded, {model.graph.input[0].name: x.numpy()})
        assert off(torch.from_numpy(found), exact) < ROUNDING


def test_what_torch_cannot_pad_stays() -> None:
    """A kernel of 2 with padding="same" sees one row more behind; the merged one of 3 needs one on both."""

    class Net(nn.Module):
        def __init__(self, k: int) -> None:
            super().__init__()
            self.a = nn.Conv2d(6, 6, k, padding="same")
            self.b = nn.Conv2d(6, 6, 1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.a(x) + self.b(x))

    for k, linear in ((3, 1), (2, 2), (4, 2), (5, 1)):
        torch.manual_seed(k)
        module, x = Net(k), torch.randn(1, 6, 7, 8)
        folded, report = bnfold.fold_program(torch.export.export(module, (x,)))
        assert ops(folded)["conv2d"] == linear
        with torch.no_grad():
            assert off(folded.module()(x), module.double()(x.double())) < ROUNDING
        assert [a.reason for a in report.apart] == [
            "would need different pads on both sides, which torch does not have"
        ] * (linear - 1)


def test_what_is_added_and_left_out() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6, bias=False), nn.Linear(6, 6)
            self.weight = nn.Parameter(torch.randn(6, 6))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.a(x) + torch.tanh(x) + x @ self.weight + self.b(x) + torch.sin(x)
            return y, torch.relu(y)

    torch.manual_seed(0)
    module, x = Net(), torch.randn(3, 4, 6)
    program = torch.export.export(module, (x,))
    folded, report = bnfold.fold_program(program)
    assert ops(folded) == {"linear": 1, "tanh": 1, "sin": 1, "add": 2, "relu": 1}
    assert report.merged[0].multiplications_before == 3 * report.merged[0].multiplications_after
    with torch.no_grad():
        exact = copy.deepcopy(module).double()(x.double())
        for found, wanted in zip(folded.module()(x), exact, strict=True):
            assert off(found, wanted) < ROUNDING
    same, nothing = bnfold.fold_program(program, merge_branches=False)
    assert same is program
    assert nothing.merged == nothing.apart == []


def test_a_product_gets_its_bias() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = (nn.Parameter(torch.randn(6, 6)) for _ in range(2))
            self.shift = nn.Parameter(torch.randn(6))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.a + self.shift + x @ self.b - x

    for shape, left in (((4, 6), {"addmm": 1}), ((2, 4, 6), {"matmul": 1, "add": 1})):
        torch.manual_seed(0)
        module, x = Net(), torch.randn(shape)
        folded, _ = bnfold.fold_program(torch.export.export(module, (x,)))
        assert ops(folded) == left
        with torch.no_grad():
            assert off(folded.module()(x), copy.deepcopy(module).double()(x.double())) < ROUNDING


def test_export_merges(tmp_path: Path) -> None:
    module, x, exact = made("RepMixer")
    for merges, convs in ((True, 1), (False, 4)):
        path = tmp_path / f"{merges}.onnx"
        report = bnfold.export(module, x, path, merge_branches=merges)
        model = onnx.load(path)
        assert sum(node.op_type == "Conv" for node in model.graph.node) == convs
        assert len(report.merged) == merges
        assert report.verification.ok
        (found,) = look.run(model, {model.graph.input[0].name: x.numpy()})
        assert off(torch.from_numpy(found), exact) < ROUNDING


def test_a_module_keeps_its_branches() -> None:
    module, x, _ = made("RepVGG")
    folded, report = bnfold.fold_module(module, x)
    assert report.merged == []
    assert isinstance(folded[0], RepVGG)


def test_the_check_tells_a_merge_from_a_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    from bnfold.fold.merge import branches

    right = branches.bias_of
    monkeypatch.setattr(branches, "bias_of", lambda role, n: right(role, n) + 1)
    module, x, _ = made("RepVGG")
    program = torch.export.export(module, (x,))
    said = r"no fold broke it, but the merging of branches into 0\.dense\.0 did"
    with pytest.raises(VerifyError, match=said):
        bnfold.fold_program(program, check="run")
    with pytest.raises(VerifyError, match=r"is wrong, a part of the merging of branches into 0\.dense\.0"):
        bnfold.fold_program(program)
