"""Where the nodes of a picture stand."""

from __future__ import annotations

import random

import numpy as np
import pytest

from bnfold.report.html.layout import COLUMN, MOST_POINTS, ROW, apart, layout


def test_a_chain_is_straight() -> None:
    found = layout(5, [(i, i + 1) for i in range(4)])
    assert found.x == [found.x[0]] * 5
    assert found.y == [ROW * i for i in range(5)]
    assert found.bends == [[]] * 4


def test_two_branches_stand_beside_each_other() -> None:
    found = layout(4, [(0, 1), (0, 2), (1, 3), (2, 3)])
    assert abs(found.x[1] - found.x[2]) >= COLUMN
    assert found.x[0] == found.x[3] == pytest.approx((found.x[1] + found.x[2]) / 2)


def test_an_edge_that_passes_a_node_goes_around_it() -> None:
    found = layout(3, [(0, 1), (1, 2), (0, 2)])
    [(x, y)] = found.bends[2]
    assert y == ROW
    assert abs(x - found.x[1]) > COLUMN / 2


def test_what_reads_nothing_stands_above_its_reader() -> None:
    found = layout(5, [(0, 1), (1, 2), (2, 4), (3, 4)])
    assert found.y[3] == found.y[4] - ROW


def test_nothing_and_what_goes_back() -> None:
    assert layout(0, []) == ([], [], [])
    assert layout(2, [(1, 0)]).bends == [[]]


def test_random_graphs() -> None:
    """Readers stand below, nodes of a layer do not touch, and long edges do not make the page large."""
    draw = random.Random(1)
    for count in (2, 7, 30, 120):
        edges = [(draw.randrange(b), b) for b in range(1, count) for _ in range(draw.choice((1, 1, 2, 9)))]
        found = layout(count, edges)
        assert layout(count, edges) == found
        for a, b in edges:
            assert found.y[a] < found.y[b]
        for y in set(found.y):
            row = np.sort([x for x, other in zip(found.x, found.y, strict=True) if other == y])
            assert (np.diff(row) >= COLUMN - 1e-6).all()
        assert min(found.x) >= 0
        assert sum(map(len, found.bends)) <= MOST_POINTS * count


def test_places_are_the_best_that_keep_their_distances() -> None:
    """The conditions of optimality: the mean error of neighbours that touch is 0, and no part would move."""
    rng = np.random.default_rng(0)
    for size in (1, 2, 9, 40):
        wanted, weights = rng.normal(size=size) * 5, rng.uniform(0.5, 4, size)
        at = np.cumsum(rng.uniform(0.5, 2, size)) - 1
        found = np.array(apart(wanted.tolist(), weights.tolist(), at.tolist()))
        free = found - at
        assert (np.diff(free) >= -1e-12).all()
        for value in np.unique(np.round(free, 9)):
            group = np.isclose(free, value)
            assert abs((weights * (found - wanted))[group].sum()) < 1e-9
            for end in range(1, int(group.sum())):  # its first part would go right, were it alone
                first = np.flatnonzero(group)[:end]
                assert (weights * (wanted - found))[first].sum() >= -1e-9
