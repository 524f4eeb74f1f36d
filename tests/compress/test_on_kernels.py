"""Slimming where this package's batch norms run on their kernels: one operator each, sum and ReLU in it."""

from __future__ import annotations

import copy

import pytest
import torch

from bnfold.compress import slim
from bnfold.compress.groups import PruningGroups
from bnfold.nn import functional, kernel_calls
from tests.compress.nets import example, residual_net
from tests.kernels.host import unavailable
from tests.kernels.machine import DEVICES, HostMachine

REASON = unavailable()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")


def test_the_same_channels_go(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = residual_net().float(), example().float()
    plain = PruningGroups(copy.deepcopy(net), (x,), {}, ()).all
    slimmed, expected = slim(net, x, fold=False)
    stand_in = HostMachine(DEVICES["cluster"])
    monkeypatch.setattr(kernel_calls, "machine_of", lambda x: stand_in)
    monkeypatch.setattr(functional, "_tried", lambda device: True)
    with torch.enable_grad():
        y = net.norm(net.stem(x))
    assert "Relu" not in y.grad_fn.name()  # one operator, in which a graph of gradients sees no ReLU
    assert PruningGroups(copy.deepcopy(net), (x,), {}, ()).all == plain
    same, report = slim(net, x, fold=False)
    assert [group.removed for group in report.groups] == [group.removed for group in expected.groups]
    assert report.verification is not None
    assert report.verification.status == "passed"
    torch.testing.assert_close(same(x), slimmed(x), rtol=1e-4, atol=1e-4)
