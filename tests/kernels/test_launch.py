"""Which launch is taken, on devices of made-up numbers: the blocks with least to do, by hand."""

from __future__ import annotations

import dataclasses

import pytest

from bnfold.kernels.launch import MOST_RANKS, ROWS, TURN, Device, Fit, Launch, Problem, plan, reading

H200 = Device((9, 0), 132, 227 * 1024, clusters=8, cooperative=True)
NO_RING = dataclasses.replace(H200, capability=(7, 5))
# ResNet-50's: channels, and height as width.
LAYERS = [(64, 112), (256, 56), (128, 56), (512, 28), (64, 56), (256, 28), (1024, 14), (128, 28)]
LAYERS += [(512, 14), (2048, 7), (256, 14), (512, 7)]


def problem(channels: int, size: int, batch: int = 128, kernel: str = "forward") -> Problem:
    """A layer in bfloat16, channels last."""
    return Problem(kernel, ("bnfold::bfloat16", "float"), batch * size * size, channels, 1)


def taken(problem: Problem, device: Device) -> Launch:
    found = plan(problem, device)
    assert found is not None
    return found


def balance(problem: Problem, device: Device) -> float:
    """What each block would have in an even split over the device, as a part of what one has at most."""
    launch, read = taken(problem, device), reading(problem)
    assert read is not None
    (row,) = (row for row in ROWS if row.name == launch.row)
    fit = row.fit(problem, device, read)
    passes = -(-fit.units // row.at_once(device, launch.ranks))
    return fit.units * fit.part(1) / device.multiprocessors / (passes * fit.part(launch.ranks))


@pytest.mark.parametrize("kernel", ["forward", "backward"])
@pytest.mark.parametrize("batch", [64, 128, 256])
@pytest.mark.parametrize("layer", LAYERS)
def test_no_layer_leaves_a_tenth_of_the_device_idle(layer: tuple[int, int], batch: int, kernel: str) -> None:
    assert balance(problem(*layer, batch, kernel), H200) > 0.9


def test_a_grid_takes_one_pass_over_eight_units_where_it_can() -> None:
    """With 17 blocks each, seven of the eight units would run at once, and one alone after them."""
    launch = taken(problem(256, 14), NO_RING)
    assert (launch.row, launch.units, launch.ranks, launch.grid) == ("cooperative grid", 8, 16, 128)


def test_a_barrier_costs_so_that_passes_are_few() -> None:
    """33 blocks a unit make two full passes, each with less to read than the one pass of 16 blocks."""
    (grid,) = (row for row in ROWS if row.exchange == "grid")
    asked = problem(256, 14)
    read = reading(asked)
    assert read is not None
    fit = Fit(asked, H200, read)
    free = dataclasses.replace(grid, barrier=0)
    assert 2 * fit.part(33) < fit.part(16)
    assert fit.cost(free, 33) < fit.cost(free, 16)
    assert fit.cost(grid, 33) > fit.cost(grid, 16)


@pytest.mark.parametrize(("eights", "row"), [(16, "cluster"), (14, "cooperative grid")])
def test_waves_of_clusters_are_counted(eights: int, row: str) -> None:
    """16 units: with 14 clusters at once the last two would need as long as all before them."""
    device = dataclasses.replace(NO_RING, at_once=(66, 33, eights))
    assert taken(problem(512, 14), device).row == row
    alone = dataclasses.replace(device, cooperative=False)
    assert taken(problem(512, 14), alone).row == "cluster"  # two waves are better than windows


def test_a_size_of_clusters_that_never_fits_is_not_taken() -> None:
    device = dataclasses.replace(H200, at_once=(66, 33, 0))
    launch = taken(problem(512, 7), device)
    assert launch.cluster in (1, 4)
    assert taken(problem(512, 7), H200).cluster == 8


@pytest.mark.parametrize("spare", [0, 4, 36, 131])
def test_multiprocessors_are_left_to_others(spare: int) -> None:
    device = dataclasses.replace(H200, spare=spare, clusters=1)
    grids = [launch for layer in LAYERS if (launch := taken(problem(*layer), device)).cooperative]
    assert len(grids) == len(LAYERS)
    assert max(launch.grid for launch in grids) <= 132 - spare
    assert min(launch.grid for launch in grids) > 0.8 * (132 - spare)


def test_windows_are_the_last_resort() -> None:
    device = Device((7, 5), 40, 64 * 1024, clusters=1, cooperative=False)
    assert taken(problem(64, 56), device).row == "one block, windows"
    assert taken(problem(64, 56), dataclasses.replace(device, cooperative=True)).row == "cooperative grid"
    assert taken(problem(64, 7, batch=8), device).row == "one block"


@pytest.mark.parametrize(
    ("layer", "kernel", "row", "ranks", "group", "passes", "turns"),
    [
        ((512, 28), "forward", "ring", 66, 32, 8, 6),  # 95 KB
        ((512, 28), "backward", "ring", 132, 32, 16, 3),
        ((1024, 14), "forward", "ring", 16, 32, 4, 7),
        ((256, 56), "forward", "ring", 132, 32, 8, 12),
        # It does not hold two tensors of 64 bytes of channels.
        ((256, 56), "backward", "ring", 132, 16, 16, 6),
        # They read less again.
        ((64, 112), "forward", "long ring", 132, 16, 4, 24),
        ((64, 112), "backward", "long ring", 132, 16, 4, 24),
    ],
)
def test_a_ring_holds_two_units_or_the_largest_one_that_it_can(
    layer: tuple[int, int], kernel: str, row: str, ranks: int, group: int, passes: int, turns: int
) -> None:
    asked = problem(*layer, kernel=kernel)
    launch = taken(asked, H200)
    teams = launch.grid // launch.ranks
    found = (launch.row, launch.ranks, launch.group, -(-launch.units // teams))
    assert found == (row, ranks, group, passes)
    part = -(-asked.outer // ranks) * launch.group // launch.width
    assert -(-part // TURN) == turns


def test_what_is_read_again_counts_twice() -> None:
    """A grid of all blocks would hold half of each unit: a ring of half as many channels is taken."""
    asked = problem(64, 56, kernel="backward")
    assert taken(asked, H200).row == "ring"
    assert taken(asked, NO_RING).row == "cooperative grid"


def test_no_more_blocks_share_a_unit_than_sets_are_read_at_one_time() -> None:
    """Of a device with more multiprocessors some are left idle where a unit needs all of them."""
    large = dataclasses.replace(H200, multiprocessors=300, clusters=1)
    for kernel in ("forward", "backward"):
        ranks = [taken(problem(*layer, 256, kernel), large).ranks for layer in LAYERS]
        assert max(ranks) == MOST_RANKS
    assert taken(problem(64, 7, batch=8), large).grid == 2


def test_a_ring_of_backward_holds_two_tensors() -> None:
    launch = taken(problem(1024, 14, kernel="backward"), H200)
    assert (launch.row, launch.ranks, launch.group, launch.window) == ("ring", 33, 32, 6 * TURN)
    assert launch.shared > 2 * 16 * launch.window


@pytest.mark.parametrize(
    "asked",
    [
        problem(72, 56),  # channels that are no whole number of units
        dataclasses.replace(problem(512, 28), aligned=False),
    ],
)
def test_what_has_no_ring(asked: Problem) -> None:
    assert "ring" not in taken(asked, H200).row
    assert "ring" not in taken(problem(512, 28), NO_RING).row
    alone = dataclasses.replace(H200, cooperative=False)
    assert "ring" not in taken(problem(512, 28), alone).row


@pytest.mark.parametrize(("kernel", "turns"), [("forward", 13), ("backward", 6)])
def test_a_long_ring_is_for_units_that_no_ring_holds(kernel: str, turns: int) -> None:
    asked = problem(64, 112, kernel=kernel)
    launch = taken(asked, H200)
    assert (launch.row, launch.window) == ("long ring", turns * TURN)
    assert taken(asked, NO_RING).row == "cooperative grid"
    # It holds two turns at least, and whole units only.
    two = launch.shared - (turns - 2) * 16 * TURN * (1 if kernel == "forward" else 2)
    assert taken(asked, dataclasses.replace(H200, shared_memory=two)).row == "long ring"
    assert taken(asked, dataclasses.replace(H200, shared_memory=two - 1)).row == "cooperative grid"
    assert taken(dataclasses.replace(asked, channels=72), H200).row == "cooperative grid"
    # The largest tensor that a ring holds, and one that has a row more.
    rows = 132 * turns * TURN // 2
    assert taken(dataclasses.replace(asked, outer=rows), H200).row == "ring"
    assert taken(dataclasses.replace(asked, outer=rows + 1), H200).row == "long ring"


def test_a_long_ring_counts_a_block_s_vectors_by_an_int() -> None:
    asked = dataclasses.replace(problem(16, 1), outer=2**31 - 1)
    assert taken(asked, H200).row == "long ring"
    assert taken(asked, dataclasses.replace(H200, spare=129)).row == "long ring"
    assert taken(asked, dataclasses.replace(H200, spare=130)).row == "cooperative grid"  # 2^31 vectors


def test_a_long_ring_is_no_better_than_a_grid_that_holds_the_only_unit() -> None:
    asked = dataclasses.replace(problem(16, 1), outer=132 * 13 * TURN // 2 + 132 * 100)
    assert taken(asked, H200).row == "cooperative grid"
    assert taken(dataclasses.replace(asked, channels=64), H200).row == "long ring"
