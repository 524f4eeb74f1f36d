"""Outlines of exported programs: calls by the names that reports give them, without what is stored."""

from __future__ import annotations

import torch
from torch import nn

import bnfold
from bnfold.torch_graph.outline import outline


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.free = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        nn.init.ones_(self.free.bias)  # a shift, which no ReLU lets pass

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.free(torch.relu(self.bn(self.conv(x)))))


def test_the_report_has_both_graphs() -> None:
    program = torch.export.export(Net().eval(), (torch.randn(1, 3, 4, 4),))
    _, report = bnfold.fold_program(program)
    assert [entry.name for entry in report.folded] == ["bn"]
    assert report.graphs is not None
    before, after = (drawn.outline() for drawn in report.graphs)
    assert [node.name for node in before.nodes] == ["conv", "bn", "relu", "free", "relu_1"]
    read = {name for node in before.nodes for name in node.inputs}
    assert {name for node in before.nodes[:-1] for name in node.outputs[-1:]} | {"x"} <= read
    assert [node.name for node in after.nodes] == ["conv", "relu", "free", "relu_1"]
    assert (before.inputs, before.outputs) == (("x",), ("relu_1",))
    made = {name for node in before.nodes for name in node.outputs}
    (route,) = report.routes.values()
    assert set(route.scale.tensors) <= made
    assert route.scale.into == ("conv",)


def test_names_that_nobody_gave_are_those_of_the_graph() -> None:
    program = torch.export.export(Net().eval(), (torch.randn(1, 3, 4, 4),))
    assert next(iter(outline(program, {}).nodes)).name == "conv2d"
