"""Modules in DataParallel, DistributedDataParallel, torch.compile and FSDP."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

import bnfold
import bnfold.nn
from bnfold.errors import UsageError
from bnfold.wrappers import inner_name, unwrapped

X = torch.linspace(-1, 1, 2 * 3 * 6 * 6).reshape(2, 3, 6, 6)


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    meeting = tmp_path_factory.mktemp("group") / "meeting"
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()


def compiled(module: nn.Module) -> Any:
    return torch.compile(module, backend="eager")


WRAPPERS: dict[str, Callable[[nn.Module], Any]] = {
    "DataParallel": nn.DataParallel,
    "DistributedDataParallel": nn.parallel.DistributedDataParallel,
    "torch.compile": compiled,
    "both": lambda module: compiled(nn.parallel.DistributedDataParallel(compiled(module))),
}


@pytest.mark.parametrize("kind", WRAPPERS)
@pytest.mark.usefixtures("group")
def test_what_is_inside_is_folded_recalibrated_and_converted(kind: str) -> None:
    inner, y = net(), net()(X)
    wrapped = WRAPPERS[kind](inner).eval()
    assert torch.equal(wrapped(X), y)  # what torch.compile made of it is known by now
    assert unwrapped(wrapped) is inner

    folded, report = bnfold.fold_module(wrapped, X)
    assert type(folded) is nn.Sequential and [entry.name for entry in report.folded] == ["1"]
    assert torch.allclose(folded(X), y, atol=1e-6)

    assert bnfold.nn.recalibrate(wrapped, [X]).counts == {"1": 32}
    y = net_like(inner)(X)
    for fuse in (False, True):
        assert bnfold.nn.convert(wrapped, fuse_activations=fuse) is wrapped
        assert type(inner[1]) is bnfold.nn.BatchNorm2d
        assert torch.equal(wrapped(X), y)
    assert bnfold.nn.revert(wrapped) is wrapped
    assert type(inner) is nn.Sequential and type(inner[1]) is nn.BatchNorm2d
    assert torch.equal(wrapped(X), y)


def net_like(module: nn.Module) -> nn.Module:
    other = net()
    other.load_state_dict(module.state_dict())
    return other


@pytest.mark.usefixtures("group")
def test_what_is_inside_is_exported(tmp_path: Path) -> None:
    report = bnfold.export(WRAPPERS["both"](net()), X, tmp_path / "net.onnx")
    assert [entry.name for entry in report.folded] == ["1"]


@pytest.mark.usefixtures("group")
def test_in_place_it_is_what_is_inside() -> None:
    inner = net()
    folded, _ = bnfold.fold_module(nn.parallel.DistributedDataParallel(inner), X, inplace=True)
    assert folded is inner and type(inner[1]) is nn.Identity


def sharded() -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    module = net()
    fully_shard(module[0])
    fully_shard(module)
    return module


@pytest.mark.usefixtures("group")
def test_parameters_that_are_spread_are_refused_where_all_are_needed(tmp_path: Path) -> None:
    said = r" needs whole parameters, and those of FSDPSequential are spread .*get_model_state_dict"
    with pytest.raises(UsageError, match="^fold_module" + said):
        bnfold.fold_module(sharded(), X)
    with pytest.raises(UsageError, match="^export" + said):
        bnfold.export(sharded(), X, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("group")
def test_what_needs_no_parameters_takes_them_spread() -> None:
    module, plain = sharded(), net()
    for each in (module, plain):
        assert bnfold.nn.recalibrate(each, [X]).counts == {"1": 32}
    bnfold.nn.convert(module, fuse_activations=True)
    assert module[1].activation == "relu"
    assert torch.equal(module(X), plain(X))
    assert type(bnfold.nn.revert(module)[1]) is nn.BatchNorm2d
    assert torch.equal(module(X), plain(X))


def test_what_is_no_wrapper() -> None:
    module = net()
    module.module = nn.ReLU()
    assert inner_name(module) == inner_name(3) == ""
    assert unwrapped(module) is module
    with pytest.raises(UsageError, match=r"^fold_module takes a torch.nn.Module, not int$"):
        bnfold.fold_module(3, X)  # type: ignore[arg-type]
