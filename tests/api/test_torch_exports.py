"""What torch's exporter really writes, raw and optimized: folded, and held against torch in float64.

(The sweep over timm's networks is tools/zoo; an export takes seconds, so here are four small nets.)
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import bnfold
from tests.onnx_graph import look


class Residual(nn.Module):
    """Conv without bias and batch norm, twice, and a batch norm on the shortcut's conv."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, groups=4, bias=False), nn.BatchNorm2d(8),
        )  # fmt: skip
        self.short = nn.Sequential(nn.Conv2d(6, 8, 1, bias=False), nn.BatchNorm2d(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.short(x))


class Tokens(nn.Module):
    """Linear and BatchNorm1d on (N, L, C), over flattened tokens, as LeViT has it; split into two halves."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8, bias=False), nn.Linear(4, 5, bias=False)
        self.norm, self.last = nn.BatchNorm1d(8), nn.BatchNorm1d(5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(2).transpose(1, 2)
        y = self.first(x)
        y = self.norm(y.flatten(0, 1)).reshape_as(y)
        a, b = y.split([4, 4], dim=2)
        z = self.second(nn.functional.hardswish(a) + b)
        return self.last(z.flatten(0, 1)).reshape_as(z)


class Preact(nn.Module):
    """A dense layer: what stands before a ReLU stays, what stands behind a conv goes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(6), nn.Conv2d(6, 8, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv1(torch.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(torch.relu(self.norm2(y)))], 1)


class Head(nn.Module):
    """Transposed conv, pooling, batch norm before a classifier, functional batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm = nn.ConvTranspose2d(6, 8, 2, stride=2, groups=2, bias=False), nn.BatchNorm2d(8)
        self.last, self.fc = nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = nn.functional.adaptive_avg_pool2d(torch.relu(self.norm(self.up(x))), 1).flatten(1)
        return self.fc(self.last(y))


CASES = [(Residual, 3, 0), (Tokens, 2, 0), (Preact, 2, 1), (Head, 2, 0)]


def randomized(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    model = build().eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.running_mean, 0, 0.3)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
            nn.init.normal_(module.weight, 0, 1)
            nn.init.normal_(module.bias, 0, 0.3)
    return model


@pytest.mark.parametrize(("build", "before", "after"), CASES, ids=[case[0].__name__ for case in CASES])
def test_exports_fold_and_agree_with_torch_in_float64(build, before, after) -> None:  # type: ignore[no-untyped-def]
    model = randomized(build)
    x = torch.randn(2, 6, 7, 5)
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(x.double()).numpy()
        program = torch.onnx.export(model, (x,), dynamo=True, optimize=False, verbose=False)
    assert program is not None
    raw = onnx.ModelProto.FromString(program.model_proto.SerializeToString())
    program.optimize()
    for proto in (raw, program.model_proto):
        folded, report = bnfold.fold_onnx(proto)
        assert report.verification is None or report.verification.status == "passed"
        left = [node for node in folded.graph.node if node.op_type == "BatchNormalization"]
        assert len(left) == after, str(report)
        (got,) = look.run(folded, {proto.graph.input[0].name: x.numpy()})
        assert np.abs(got - exact).max() / np.abs(exact).max() < 1e-5
    assert sum(node.op_type == "BatchNormalization" for node in raw.graph.node) == before
