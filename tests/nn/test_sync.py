"""SyncBatchNorm on the CPU: two processes with uneven batches compute what one computes with all of them."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

import bnfold.nn

SIZES = {2: (5, 2), 4: (3, 0, 1, 4)}  # of the local batches, by how many processes


def net(kind: Any) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), kind(4, activation="relu"), nn.Conv2d(4, 2, 3), kind(2, momentum=None)
    )


def images(count: int) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(count, 3, 8, 8) * 2 + 1


def worker(rank: int, port: int, folder: str) -> None:
    """Both sizes in one group of four; the smaller in a subgroup of its first two."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=4)
    pair = dist.new_group([0, 1])
    for world, sizes in SIZES.items():
        group = dist.group.WORLD if world == 4 else pair
        if rank >= world:
            continue
        start = sum(sizes[:rank])
        x = images(sum(sizes))[start : start + sizes[rank]].clone().requires_grad_()
        module = net(lambda c, group=group, **o: bnfold.nn.SyncBatchNorm(c, process_group=group, **o))
        for _ in range(2):
            y = module(x)
        (y.sin() * torch.arange(1.0, 3.0)[:, None, None]).sum().backward()
        found = {"y": y.detach(), "dx": x.grad, "state": module.state_dict()}
        found["grads"] = [p.grad for p in module.parameters()]
        if world == 4:
            other = nn.Sequential(nn.BatchNorm2d(3))
            bnfold.nn.recalibrate(other, [x.detach()] if len(x) else [])
            found["recalibrated"] = other.state_dict()
        torch.save(found, f"{folder}/{world}-{rank}.pt")
    dist.destroy_process_group()


def test_many_processes_compute_what_one_does(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(worker, (port, str(tmp_path)), nprocs=4)
    for world, sizes in SIZES.items():
        found = [torch.load(tmp_path / f"{world}-{rank}.pt") for rank in range(world)]
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
    exact = images(8).double().transpose(0, 1).flatten(1)
    for one in found:
        assert torch.allclose(one["recalibrated"]["0.running_mean"].double(), exact.mean(1), rtol=1e-6)
        assert torch.allclose(one["recalibrated"]["0.running_var"].double(), exact.var(1), rtol=1e-6)
