"""The properties of drop_in/: what can be relied on of torch's batch norms holds for this package's."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import tests.nn.drop_in.calls
import tests.nn.drop_in.state  # noqa: F401 (both put properties on the list)
from tests.kernels.host import unavailable
from tests.kernels.machine import HostMachine
from tests.nn.drop_in import OURS, PROPERTIES, SYNCHRONIZED, Library

# Of these nothing runs on kernels: they only look, end in errors, or are torch's (torch.func, empty batches).
WITHOUT = {
    *("empty batches", "hooks on states", "loading what does not fit", "names and order"),
    *("one running statistic", "parameters of another shape", "pickles"),
    *("states from before batches were counted", "transforms", "vmap errors"),
}


def run(name: str, library: Library) -> Any:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of both alike
        return PROPERTIES[name](library)


def same(ours: Any, theirs: Any, room: float) -> None:
    if isinstance(theirs, Tensor):
        torch.testing.assert_close(ours, theirs, rtol=room, atol=room)
    elif isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        same(list(ours.values()), list(theirs.values()), room)
    elif isinstance(theirs, (list, tuple)):
        assert len(ours) == len(theirs)
        for mine, other in zip(ours, theirs, strict=True):
            same(mine, other, room)
    else:
        assert ours == theirs


@pytest.mark.parametrize("library", [OURS, SYNCHRONIZED], ids=["plain", "synchronized"])
@pytest.mark.parametrize("name", PROPERTIES)
def test_it_holds(name: str, library: Library) -> None:
    same(run(name, library), run(name, library.other), 0.0)


@pytest.mark.skipif(unavailable() is not None, reason=unavailable() or "")
@pytest.mark.parametrize("name", PROPERTIES)
def test_it_holds_on_kernels(name: str, machine: HostMachine) -> None:
    same(run(name, OURS), run(name, OURS.other), 1e-4)
    assert bool(machine.launches) == (name not in WITHOUT)
