"""torchao's PT2E behind the fold: what it converts has no batch norm, and is right but for rounding."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import bnfold
from bnfold.integrations.stack import TESTED
from tests.torch_graph.modules import randomize

ao: Any = pytest.importorskip("torchao", reason="an environment of before torchao was added to the extra dev")
IMAGE = (2, 3, 8, 8)


@pytest.fixture(scope="module")
def pt2e() -> Iterator[Any]:
    """PT2E with the quantizer that XNNPACK's is a copy of, without its logs."""
    logging.disable(logging.WARNING)
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.testing.pt2e._xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config

    def quantized(program: Any, x: torch.Tensor) -> Any:
        config = get_symmetric_quantization_config(is_per_channel=True)
        prepared = prepare_pt2e(program.module(), XNNPACKQuantizer().set_global(config))
        prepared(x)
        return convert_pt2e(prepared)

    yield quantized
    logging.disable(logging.NOTSET)


def count(graph: Any, name: str) -> int:
    return sum(name in str(node.target) for node in graph.graph.nodes if node.op == "call_function")


def test_the_version_is_the_tested_one() -> None:
    assert ao.__version__.partition("+")[0] == TESTED["torchao"]


def test_a_fold_in_front_of_prepare_pt2e_leaves_no_batch_norm(pt2e: Any) -> None:
    """PT2E folds the last one, behind a conv, by itself; the other one it leaves."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3), nn.ReLU(), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4))
    module, x = randomize(nn.Sequential(*layers)), torch.randn(IMAGE)
    program = torch.export.export(module, (x,))
    folded, report = bnfold.fold_program(program, quantize_for="int8")
    assert not report.kept
    without, with_ = pt2e(program, x), pt2e(folded, x)
    assert [count(graph, "batch_norm") for graph in (without, with_)] == [1, 0]
    assert count(with_, "quantize") < count(without, "quantize")
    with torch.no_grad():
        wanted = module(x)
        errors = [float((graph(x) - wanted).norm() / wanted.norm()) for graph in (without, with_)]
    assert errors[1] < max(0.05, errors[0])
