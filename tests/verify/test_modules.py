"""Torch modules, and files exported from them: rounding and faults, told apart by three inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bnfold.onnx_graph.file.loaded import load
from bnfold.options import Check
from bnfold.verify.child import Crashed
from bnfold.verify.exported import AgainstModule
from bnfold.verify.modules import near, verify_modules
from tests.verify.test_rounding import ORDERS, noisy


class Noisy(nn.Module):
    """As `noisy`."""

    def __init__(self, order: list[int], factor: float = 1.0) -> None:
        super().__init__()
        k = np.random.default_rng(2).standard_normal(16).astype(np.float32) * 1e4
        self.k, self.order, self.factor = nn.Parameter(torch.from_numpy(k)), order, factor

    def forward(self, x: Tensor) -> Tensor:
        parts = (x * self.k).split(1, 1)
        a, b = parts[self.order[0]], parts[0]
        for j in self.order[1:]:
            a = a + parts[j]
        for part in parts[1:]:
            b = b + part
        return a - b + parts[0] * 1e-4 * self.factor


def given(seed: int) -> tuple[Tensor]:
    return (torch.randn(4, 16, generator=torch.Generator().manual_seed(seed)),)


PAIRS = [(0, 1), (1, 0)]


@pytest.mark.parametrize("kind", ["modules", "file"])
def test_rounding_is_not_refused_by_the_luck_of_one_input(kind: str) -> None:
    results = []
    for one, other in PAIRS:
        module = Noisy(ORDERS[one])
        for seed in range(16):
            if kind == "modules":
                results.append(verify_modules(module, Noisy(ORDERS[other]), given(seed), {}))
            else:
                file = load(noisy(ORDERS[other]))
                results.append(AgainstModule(module, given(seed), {}, Check(), file)(file))
    assert all(found.outputs[0].max_rel > 1e-5 for found in results)
    assert [found.status for found in results].count("failed") == 0
    assert all(found.outputs[0].rounding for found in results)


def test_what_is_no_rounding_is_found() -> None:
    x, module = given(0), Noisy(ORDERS[0], 40.0)
    file = load(noisy(ORDERS[0]))
    assert verify_modules(module, Noisy(ORDERS[0]), x, {}).status == "failed"
    assert AgainstModule(module, x, {}, Check(), file)(file).status == "failed"
    strict = Check(rtol=1e-5)  # it is the user's, and has no exceptions
    assert verify_modules(Noisy(ORDERS[0]), Noisy(ORDERS[1]), x, {}, strict).status == "failed"
    assert AgainstModule(Noisy(ORDERS[1]), x, {}, strict, file)(file).status == "failed"


def test_a_file_that_crashes_what_runs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def crashed(*_: Any) -> None:
        raise Crashed("SIGABRT")

    monkeypatch.setattr("bnfold.verify.exported.evaluate", crashed)
    file = load(noisy(ORDERS[0]))
    found = AgainstModule(Noisy(ORDERS[0]), given(0), {}, Check(), file)(file)
    assert (found.status, found.outputs) == ("failed", [])
    assert (
        found.reason
        == "the folded file crashes onnxruntime (SIGABRT), and the file as torch wrote it does not"
    )


def test_other_arguments_near_to_what_is_given() -> None:
    ids = torch.arange(3)
    inputs: Any = (
        (torch.ones(2, dtype=torch.bfloat16), ids),
        {"mask": None, "z": torch.ones(1, requires_grad=True)},
    )
    (x, same), more = near(inputs, 2)
    assert same is ids and more["mask"] is None and not more["z"].requires_grad
    assert x.dtype == torch.bfloat16 and 0.95 < float(x[0]) < 0.99
    assert near(inputs, 0) is inputs
    assert near((ids,), 1) is None
