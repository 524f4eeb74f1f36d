"""SyncBatchNorm on the CPU: processes with uneven batches compute what one computes with all of them.

In the real DistributedDataParallel (the cases of ddp_cases.py), with torch's own operations and on the
kernels, which a stand-in for a device runs. All processes are started once.
"""

from __future__ import annotations

import copy
import itertools
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import bnfold.nn
from bnfold.errors import UsageError
from bnfold.nn import across_ranks, kernel_calls, sync
from tests.kernels.host import unavailable
from tests.kernels.machine import DEVICES, HostMachine
from tests.nn.ddp_cases import CASES, Found, Place, images, loss_of

SIZES = {1: (4,), 2: (5, 2), 4: (3, 0, 1, 4)}  # of the local batches, by how many processes
START = "spawn" if sys.platform == "win32" else "forkserver"
LOADERS = ((3, 2, 4), (2,), (3, 3, 2), (4,))  # sizes of the batches of each of four ranks
EMPTY = ((3, 2), (), (4,), (2,))
PLAIN = ((3, 2), (), (2, 2, 2), (4,))
# Sums of float32 in another order; of the losses of ddp_cases, up to some hundreds.
ROOM = {"rtol": 1e-4, "atol": 1e-4}
HALF = {"joined": {"rtol": 8e-3, "atol": 8e-3}, "same": {"rtol": 8e-3, "atol": 0.0}}  # a bit of bfloat16


def part(rank: int, sizes: tuple[int, ...]) -> Tensor:
    start = sum(sizes[:rank])
    return images(sum(sizes))[start : start + sizes[rank]].clone()


def batches(rank: int, sizes: tuple[tuple[int, ...], ...]) -> list[Tensor]:
    before = sum(map(sum, sizes[:rank]))
    mine = images(sum(map(sum, sizes)))[before : before + sum(sizes[rank])]
    return list(mine.split(list(sizes[rank])))


def two_layers(norm: Any = bnfold.nn.SyncBatchNorm) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm(4), nn.ReLU(), nn.Conv2d(4, 2, 3), norm(2))


def worker(rank: int, folder: str) -> None:
    """Every case in groups of the first one, two and four."""
    meeting = f"file://{folder}/meeting"  # a port that is free now may not be in a moment
    dist.init_process_group(
        "gloo", init_method=meeting, rank=rank, world_size=4, timeout=timedelta(minutes=20)
    )
    groups = {1: dist.new_group([0]), 2: dist.new_group([0, 1]), 4: dist.group.WORLD}
    found: dict[tuple[str, int], Found] = {}
    for (world, sizes), (name, case) in itertools.product(SIZES.items(), CASES.items()):
        if rank < world:
            found[name, world] = case(Place(world, groups[world]), part(rank, sizes))
    torch.save(found, f"{folder}/cases-{rank}.pt")
    if unavailable() is None:
        machine = HostMachine(DEVICES["cluster"])
        alone = kernel_calls.machine_of
        kernel_calls.machine_of = lambda x: machine
        on_kernels: Any = CASES["steps"](Place(4, dist.group.WORLD), part(rank, SIZES[4]))
        on_kernels["launched"] = {launch.source for launch in machine.launches}
        torch.save(on_kernels, f"{folder}/kernels-{rank}.pt")
        kernel_calls.machine_of = alone
    torch.save(recalibrated(rank, groups[2]), f"{folder}/recalibrated-{rank}.pt")
    pair = dist.new_group([0, 1], timeout=timedelta(minutes=2))  # a rank that waits for nobody ends
    torch.save(different_needs(rank, pair) if rank < 2 else None, f"{folder}/needs-{rank}.pt")
    norm = bnfold.nn.SyncBatchNorm(3, process_group=groups[2])
    torch.save([norm(images(2)), norm.eval()(images(2))] if rank > 1 else None, f"{folder}/outside-{rank}.pt")
    dist.barrier()  # nobody leaves while another still talks
    dist.destroy_process_group()


def different_needs(rank: int, pair: Any) -> dict[str, Any]:
    """Two ranks of which only the first needs a gradient: of parameters, of the input, or any at all."""
    first = rank == 0
    norm = bnfold.nn.SyncBatchNorm(3, process_group=pair).requires_grad_(first)
    y = norm(part(rank, SIZES[2]))
    if first:
        Place().backward(y)
    found: dict[str, Any] = {"weight": norm.weight.grad}
    norm = bnfold.nn.SyncBatchNorm(3, process_group=pair)
    x = part(rank, SIZES[2]).requires_grad_(first)
    Place().backward(norm(x))
    found["x"] = x.grad
    y = bnfold.nn.SyncBatchNorm(3, affine=False, process_group=pair)(x)
    with torch.set_grad_enabled(first):
        z = norm(x)
    for name, tensor in (("nothing to learn", y), ("no_grad", z)):
        try:
            if first:
                Place().backward(tensor)
        except UsageError as error:
            found[name] = str(error)
    return found


def recalibrated(rank: int, pair: Any) -> dict[str, Any]:
    uneven, empty, wrapped, broken = two_layers(), two_layers(), two_layers(nn.BatchNorm2d), two_layers()
    some = two_layers(lambda channels: bnfold.nn.SyncBatchNorm(channels, process_group=pair))
    found: dict[str, Any] = {}
    bnfold.nn.recalibrate(uneven, batches(rank, LOADERS))
    bnfold.nn.recalibrate(some, batches(rank, LOADERS))  # two ranks wait for each other, two for nobody
    bnfold.nn.recalibrate(empty, batches(rank, EMPTY), layer_by_layer=True)
    bnfold.nn.recalibrate(DistributedDataParallel(wrapped), batches(rank, PLAIN))
    for name, module in (("uneven", uneven), ("some", some), ("layer by layer", empty), ("wrapped", wrapped)):
        found[name] = copy.deepcopy(module.state_dict())
    wrapped[1].num_batches_tracked.fill_(2)
    bnfold.nn.recalibrate(wrapped, batches(rank, PLAIN), reset=False)
    found["not reset"] = wrapped.state_dict()
    before = copy.deepcopy(broken.state_dict())
    loader = [
        torch.full_like(x, torch.nan) if (rank, n) == (2, 1) else x
        for n, x in enumerate(batches(rank, LOADERS))
    ]
    try:
        bnfold.nn.recalibrate(broken, loader)
    except UsageError as error:
        found["refused"] = str(error)
    found["unchanged"] = all(torch.equal(value, before[key]) for key, value in broken.state_dict().items())
    return found


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the four processes left what they found."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.set_forkserver_preload(["torch", "tests.nn.test_sync"])  # imported once for the four
    mp.start_processes(worker, (str(folder),), nprocs=4, start_method=START)
    return folder


def loaded(folder: Path, name: str, ranks: int = 4) -> list[Any]:
    return [torch.load(folder / f"{name}-{rank}.pt") for rank in range(ranks)]


def agree(found: list[Found], whole: Found) -> None:
    """Whether the ranks found what one process does."""
    for index, tensor in enumerate(whole["joined"]):
        near(torch.cat([one["joined"][index] for one in found]), tensor, "joined")
    for one in found:
        for ours, theirs in zip(one["same"], whole["same"], strict=True):
            near(ours, theirs, "same")


def near(ours: Tensor, theirs: Tensor, what: str) -> None:
    torch.testing.assert_close(ours, theirs, **(HALF[what] if theirs.dtype == torch.bfloat16 else ROOM))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("world", SIZES)
def test_ranks_compute_what_one_process_does(ran: Path, name: str, world: int) -> None:
    found = [of_rank[name, world] for of_rank in loaded(ran, "cases", world)]
    agree(found, CASES[name](Place(), images(sum(SIZES[world]))))


def test_ranks_that_need_different_gradients(ran: Path) -> None:
    norm, x = nn.BatchNorm2d(3), images(sum(SIZES[2])).requires_grad_()
    first = SIZES[2][0]
    found = torch.load(ran / "needs-0.pt")
    near(found["weight"], torch.autograd.grad(loss_of(norm(x)[:first]), norm.weight)[0], "same")
    near(found["x"], torch.autograd.grad(loss_of(norm(x)), x)[0][:first], "joined")
    for name in ("nothing to learn", "no_grad"):
        assert "would wait for ever for rank 1 of its group" in found[name]


@pytest.mark.skipif(unavailable() is not None, reason=unavailable() or "")
def test_ranks_on_kernels_compute_what_one_process_does(ran: Path) -> None:
    found = loaded(ran, "kernels")
    agree(found, CASES["steps"](Place(), images(sum(SIZES[4]))))
    used = {"forward.cuh", "backward.cuh", "apply.cuh"}
    assert [one["launched"] for one in found] == [used if size else set() for size in SIZES[4]]


def test_a_rank_outside_the_group_is_alone(ran: Path) -> None:
    norm = nn.BatchNorm2d(3)
    wanted = [norm(images(2)), norm.eval()(images(2))]
    for found in loaded(ran, "outside")[2:]:
        torch.testing.assert_close(found, wanted)


def inputs_of_both(sizes: tuple[tuple[int, ...], ...]) -> Iterator[tuple[Tensor, Tensor]]:
    """What both batch norms see: ranks together as long as all have a batch, then each by itself."""
    module, loaders = two_layers(nn.BatchNorm2d), [batches(rank, sizes) for rank in range(len(sizes))]
    with torch.no_grad():
        for now in itertools.zip_longest(*loaders):
            all_have = all(x is not None for x in now)
            for x in [torch.cat(now)] if all_have else [x for x in now if x is not None]:
                yield module[0](x), module[:4](x)


def test_recalibration_of_ranks_with_different_numbers_of_batches(ran: Path) -> None:
    exact = inputs_of_both(LOADERS)
    for index, seen in zip((1, 4), map(torch.cat, zip(*exact, strict=True)), strict=True):
        values = seen.double().transpose(0, 1).flatten(1)
        for found in loaded(ran, "recalibrated"):
            state = found["uneven"]
            if index == 1:  # its inputs do not depend on who waits for whom
                torch.testing.assert_close(found["some"]["1.running_var"], state["1.running_var"])
            torch.testing.assert_close(
                state[f"{index}.running_mean"].double(), values.mean(1), rtol=1e-5, atol=1e-6
            )
            torch.testing.assert_close(
                state[f"{index}.running_var"].double(), values.var(1), rtol=1e-5, atol=1e-6
            )
            assert state[f"{index}.num_batches_tracked"] == 0


def test_recalibration_of_ranks_without_data_or_in_a_wrapper(ran: Path) -> None:
    whole = two_layers(nn.BatchNorm2d)
    bnfold.nn.recalibrate(whole, [images(11)], layer_by_layer=True)
    alone = two_layers(nn.BatchNorm2d)
    bnfold.nn.recalibrate(alone, [x for rank in range(4) for x in batches(rank, PLAIN)])
    for found in loaded(ran, "recalibrated"):
        for name, module in (("layer by layer", whole), ("wrapped", alone)):
            for key, value in module.state_dict().items():
                torch.testing.assert_close(found[name][key], value, rtol=1e-5, atol=1e-6)
        # The same data once more: the mean stays.
        for index in (1, 4):
            mean = alone[index].running_mean
            torch.testing.assert_close(
                found["not reset"][f"{index}.running_mean"], mean, rtol=1e-5, atol=1e-6
            )


def test_recalibration_that_one_rank_refuses_changes_nothing_on_any(ran: Path) -> None:
    found = loaded(ran, "recalibrated")
    for rank, one in enumerate(found):
        own = "batch 1 of the loader (the first is batch 0) gives 1 values that are NaN or infinite"
        assert one["refused"] == (
            own if rank == 2 else "another rank refused a batch of its loader, and says which"
        )
        assert one["unchanged"]


@pytest.mark.usefixtures("world_of_one")
@pytest.mark.parametrize("name", CASES)
def test_a_world_of_one(name: str) -> None:
    whole = CASES[name](Place(), images(5))
    agree([CASES[name](Place(1, dist.group.WORLD), images(5))], whole)


@pytest.mark.usefixtures("world_of_one")
def test_it_compiles_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync, "ranks_of", lambda norm: 2)  # it would be an ordinary batch norm
    torch.manual_seed(0)
    ours = bnfold.nn.SyncBatchNorm(3, momentum=None, activation="relu")
    theirs = nn.BatchNorm2d(3, momentum=None)
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        x, r = images(4).requires_grad_(), images(4).flip(0).requires_grad_()
        y, z = compiled(x, r), (theirs(x) + r).relu()
        near(y, z, "joined")
        for mine, other in zip(
            torch.autograd.grad(y.square().sum(), (x, r, *ours.parameters())),
            torch.autograd.grad(z.square().sum(), (x, r, *theirs.parameters())),
            strict=True,
        ):
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-3)
        for mine, other in zip(ours.buffers(), theirs.buffers(), strict=True):
            near(mine, other, "same")


@pytest.mark.usefixtures("world_of_one")
@pytest.mark.parametrize("needed", [True, False])
def test_compiled_backward_waits_for_others_where_an_input_needs_it(
    monkeypatch: pytest.MonkeyPatch, needed: bool
) -> None:
    sums: list[Tensor] = []
    monkeypatch.setattr(sync, "ranks_of", lambda norm: 2)
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, group: sums.append(tensor))
    compiled = torch.compile(bnfold.nn.SyncBatchNorm(3), backend="aot_eager", fullgraph=True)
    compiled(images(4).requires_grad_(needed)).square().sum().backward()
    assert len(sums) == needed


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A group of two, of which only one has values."""
    monkeypatch.setattr(
        across_ranks,
        "gathered",
        lambda here, group, note: (here, torch.full((2,), note, dtype=torch.float64)),
    )
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


def test_one_running_statistic_is_refused_as_by_torch(alone: Any) -> None:
    for name in ("running_mean", "running_var"):
        norm = bnfold.nn.SyncBatchNorm(3, process_group=alone)
        setattr(norm, name, None)
        with pytest.raises(ValueError, match="must either both be None or neither"):
            norm(images(3))


def test_a_small_variance_in_bfloat16(alone: Any) -> None:
    """What is old is not taken off again: 1 + (0.0004 - 1) is 0 in bfloat16."""
    x = (images(8) * 0.01).bfloat16()
    for momentum in (1.0, None):
        norm = bnfold.nn.SyncBatchNorm(3, process_group=alone, momentum=momentum).bfloat16()
        norm(x)
        exact = x.double().transpose(0, 1).flatten(1)
        assert torch.equal(norm.running_mean, exact.mean(1).bfloat16())
        assert torch.equal(norm.running_var, exact.var(1).bfloat16())
