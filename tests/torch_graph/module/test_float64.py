"""`InFloat64`: the same as a float64 copy of the module gives, and told where it cannot be."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bnfold.torch_graph.module.float64 import InFloat64, to_float64
from tests.torch_graph.modules import CASES, Fn, randomize

TOKENS = (2, 3, 6)

MORE: dict[str, tuple[Any, tuple[int, ...]]] = {
    "lstm": (lambda: Fn(lambda m, x: m.l(x)[0], l=nn.LSTM(6, 5, bidirectional=True)), TOKENS),
    "gru": (lambda: Fn(lambda m, x: m.l(x)[0], l=nn.GRU(6, 5, num_layers=2)), TOKENS),
    "attention": (lambda: Fn(lambda m, x: m.l(x, x, x)[0], l=nn.MultiheadAttention(6, 2)), TOKENS),
    "encoder": (lambda: nn.TransformerEncoderLayer(6, 2, 8), TOKENS),
    "in place": (
        lambda: Fn(lambda m, x: m.l(x).relu_().mul_(m.n.weight), l=nn.Linear(6, 6), n=nn.LayerNorm(6)),
        TOKENS,
    ),
}


@pytest.mark.parametrize("name", [*CASES, *MORE])
def test_as_a_float64_copy_computes(name: str) -> None:
    make, shape = {**CASES, **MORE}[name][:2]
    torch.manual_seed(0)
    module, x = randomize(make()), torch.randn(shape)
    with torch.no_grad():
        want = copy.deepcopy(module).double()(x.double())
        with InFloat64():
            found = module(to_float64(x))
    assert found.dtype == torch.float64
    assert torch.allclose(found, want, rtol=0, atol=1e-12 * float(want.abs().max()))
    assert all(value.dtype != torch.float64 for value in module.state_dict().values())


def test_types_that_the_code_names_are_widened_as_well() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        y = torch.empty(2, 3, 4, dtype=torch.float32)
        y[:] = m.l(x.to(m.l.weight.dtype)).float() / 3
        return y + torch.zeros(4).half()

    module, x = Fn(run, l=nn.Linear(6, 4)), torch.randn(TOKENS)
    with torch.no_grad():
        with InFloat64():
            found = module(to_float64(x))
        want = copy.deepcopy(module.l).double()(x.double()) / 3
    assert torch.allclose(found, want, rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    "write",
    [
        lambda m, x: m.n.weight.mul_(2),
        lambda m, x: m.n.weight.__setitem__(0, 1.0),
        lambda m, x: torch.add(x[0, 0], 1, out=m.n.weight),
        lambda m, x: torch.ops.aten.add_.Tensor(m.n.weight, 1.0),
    ],
)
def test_what_writes_into_a_buffer_is_told(write: Any) -> None:
    module = Fn(write, n=nn.LayerNorm(6)).requires_grad_(False)
    with torch.no_grad(), InFloat64(), pytest.raises(TypeError, match="writes into a stored tensor"):
        module(torch.randn(TOKENS).double())
