"""SyncBatchNorm on the CPU: processes with uneven batches compute what one computes with all of them.

Both with torch's own operations and on the kernels, which a stand-in for a device runs.
"""

from __future__ import annotations

import itertools
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

import bnfold.nn
from bnfold.nn import kernel_calls, sync
from tests.kernels.host import unavailable
from tests.kernels.machine import DEVICES, HostMachine

SIZES = {2: (5, 2), 4: (3, 0, 1, 4)}  # of the local batches, by how many processes
WAYS = ("torch", "kernels") if unavailable() is None else ("torch",)
START = "spawn" if sys.platform == "win32" else "forkserver"
NO_MACHINE = kernel_calls.machine_of


class Shortcut(nn.Module):
    """A batch norm to whose result its input is added before the activation."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x, x)


def net(kind: Any) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3), Shortcut(kind(4, activation="relu")), nn.Conv2d(4, 2, 3)),
        kind(2, momentum=None),
    )


def images(count: int) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(count, 3, 8, 8) * 2 + 1


def worker(rank: int, folder: str) -> None:
    """Both sizes in one group of four; the smaller in a subgroup of its first two."""
    meeting = f"file://{folder}/meeting"  # a port that is free now may not be in a moment
    dist.init_process_group(
        "gloo", init_method=meeting, rank=rank, world_size=4, timeout=timedelta(minutes=20)
    )
    pair = dist.new_group([0, 1])
    for way, (world, sizes) in itertools.product(WAYS, SIZES.items()):
        if rank >= world:
            continue
        machine = HostMachine(DEVICES["cluster"])
        kernel_calls.machine_of = NO_MACHINE if way == "torch" else lambda x, machine=machine: machine
        found = trained(rank, sizes, dist.group.WORLD if world == 4 else pair)
        found["launched"] = {launch.source for launch in machine.launches}
        torch.save(found, f"{folder}/{way}-{world}-{rank}.pt")
    kernel_calls.machine_of = NO_MACHINE
    recalibrated = nn.Sequential(nn.BatchNorm2d(3))
    bnfold.nn.recalibrate(recalibrated, [x] if len(x := part(rank, SIZES[4])) else [])
    module = net(bnfold.nn.BatchNorm2d)
    parallel = nn.parallel.DistributedDataParallel(module)
    parallel(images(8)[2 * rank : 2 * rank + 2]).square().sum().backward()
    found = {"recalibrated": recalibrated.state_dict(), "ddp": [p.grad for p in module.parameters()]}
    torch.save(found, f"{folder}/{rank}.pt")
    del parallel
    dist.barrier()  # nobody leaves while another still talks
    dist.destroy_process_group()


def part(rank: int, sizes: tuple[int, ...]) -> torch.Tensor:
    start = sum(sizes[:rank])
    return images(sum(sizes))[start : start + sizes[rank]].clone()


def trained(rank: int, sizes: tuple[int, ...], group: Any) -> dict[str, Any]:
    """What a rank sees of two steps."""
    x = part(rank, sizes).requires_grad_()
    module = net(lambda c, **options: bnfold.nn.SyncBatchNorm(c, process_group=group, **options))
    for _ in range(2):
        y = module(x)
    (y.sin() * torch.arange(1.0, 3.0)[:, None, None]).sum().backward()
    found = {"y": y.detach(), "dx": x.grad, "state": module.state_dict()}
    return found | {"grads": [p.grad for p in module.parameters()]}


def test_many_processes_compute_what_one_does(tmp_path: Path) -> None:
    mp.set_forkserver_preload(["torch", "tests.nn.test_sync"])  # imported once for the four
    mp.start_processes(worker, (str(tmp_path),), nprocs=4, start_method=START)
    for way, (world, sizes) in itertools.product(WAYS, SIZES.items()):
        found = [torch.load(tmp_path / f"{way}-{world}-{rank}.pt") for rank in range(world)]
        x = images(sum(sizes)).requires_grad_()
        module = net(bnfold.nn.BatchNorm2d)
        for _ in range(2):
            y = module(x)
        (y.sin() * torch.arange(1.0, 3.0)[:, None, None]).sum().backward()
        assert torch.allclose(torch.cat([f["y"] for f in found]), y, atol=1e-5)
        assert torch.allclose(torch.cat([f["dx"] for f in found]), x.grad, atol=1e-5)
        for index, parameter in enumerate(module.parameters()):
            total = sum(f["grads"][index] for f in found if f["grads"][index] is not None)
            assert torch.allclose(total, parameter.grad, rtol=1e-4, atol=1e-3)
        for key, value in module.state_dict().items():
            for one in found:  # the same on every rank
                assert torch.allclose(one["state"][key].double(), value.double(), rtol=1e-5, atol=1e-5)
        used = {"torch": set(), "kernels": {"forward.cuh", "backward.cuh", "apply.cuh"}}[way]
        assert [one["launched"] for one in found] == [used if size else set() for size in sizes]
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(4)]
    exact = images(8).double().transpose(0, 1).flatten(1)
    for one in found:
        assert torch.allclose(one["recalibrated"]["0.running_mean"].double(), exact.mean(1), rtol=1e-6)
        assert torch.allclose(one["recalibrated"]["0.running_var"].double(), exact.var(1), rtol=1e-6)
    alone = []
    for rank in range(4):
        module = net(bnfold.nn.BatchNorm2d)
        module(images(8)[2 * rank : 2 * rank + 2]).square().sum().backward()
        alone.append([p.grad for p in module.parameters()])
    for index, mean in enumerate(torch.stack(each).mean(0) for each in zip(*alone, strict=True)):
        for one in found:
            assert torch.allclose(one["ddp"][index], mean, rtol=1e-4, atol=1e-4)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A group of two, of which only one has values."""
    monkeypatch.setattr(sync, "gathered", lambda here, group: here)
    monkeypatch.setattr(dist, "get_world_size", lambda group: 2)
    monkeypatch.setattr(dist, "all_reduce", lambda sums, group: None)
    if unavailable() is None:
        machine = HostMachine(DEVICES["cluster"])
        monkeypatch.setattr(kernel_calls, "machine_of", lambda x: machine)
    return object()


def test_unusual_types_and_parameters(alone: Any) -> None:
    torch.manual_seed(0)
    ours, theirs = bnfold.nn.SyncBatchNorm(4, process_group=alone), nn.BatchNorm2d(4)
    weight = torch.rand(8)[::2]
    ours.weight, theirs.weight = nn.Parameter(weight), nn.Parameter(weight)
    x = images(3)[:, [0, 1, 2, 0]]
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    added = torch.rand(x.shape, dtype=torch.float64)
    torch.testing.assert_close(ours(x, added), theirs(x) + added, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="expected 4 channels, got 3"):
        ours(images(3))
    torch.testing.assert_close(ours.double()(x.double()), theirs.double()(x.double()))
    ours.num_batches_tracked, ours.momentum = None, None
    before = ours.running_mean.clone()
    ours(x.double())
    assert torch.equal(ours.running_mean, before)


def test_hooks_that_save_in_another_order(alone: Any) -> None:
    norm = bnfold.nn.SyncBatchNorm(3, process_group=alone, activation="relu")
    x = images(3).contiguous(memory_format=torch.channels_last).requires_grad_()
    r = torch.randn_like(x)
    wanted = torch.autograd.grad(norm(x, r).square().sum(), x)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: torch.empty(t.shape, dtype=t.dtype).copy_(t), lambda t: t
    ):
        y = norm(x, r)
    torch.testing.assert_close(torch.autograd.grad(y.square().sum(), x), wanted)


def test_a_converted_module_keeps_its_activations() -> None:
    module = nn.Sequential(bnfold.nn.BatchNorm2d(3, activation="relu"), nn.Sequential(nn.BatchNorm2d(3)))
    after = bnfold.nn.SyncBatchNorm.convert_sync_batchnorm(module)
    assert [type(part) for part in (after[0], after[1][0])] == [bnfold.nn.SyncBatchNorm] * 2
    assert [part.activation for part in (after[0], after[1][0])] == ["relu", None]
