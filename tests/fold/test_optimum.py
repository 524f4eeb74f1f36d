"""What stays is the least that can, held against a bound that tries no folds (bound.py).

The number of graphs is small here; BNFOLD_GRAPHS=5000 runs more.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import combinations

import pytest

from bnfold.fold.graph import Graph
from bnfold.fold.solve import solve
from bnfold.onnx_graph.file.loaded import load
from bnfold.onnx_graph.read import read
from tests.fold.bound import Systems, bound
from tests.fold.laws import LAWS
from tests.fold.random_nets import random_net
from tests.onnx_graph.cases.random_graphs import random_model

GRAPHS = int(os.environ.get("BNFOLD_GRAPHS", "90"))
# where sums must not choose one by one, nor after what a Concat leaves open, nor the first fold be kept
HARD = (382, 614, 926, 950, 1311, 1529, 1620)
SEEDS = sorted({*range(GRAPHS), *HARD})
SHARES = (0.5, 0.1, 0.0)  # of the scales that are negative: "half", "few", "none"
SHORT = 0.002  # of the graphs: where more stay than must
MODELS = int(os.environ.get("BNFOLD_GRAPHS", "60"))  # with operators of every kind
UNKNOWN = 0.02  # of them: where the bound may lie above
ALONE = 5  # graphs of each share all of whose subsets are looked at


def folded(graph: Graph, allowed: frozenset[str] | None = None) -> set[str]:
    """The nodes that vanish; `allowed`: of these only."""
    allow = None if allowed is None else lambda node: node.name in allowed
    return {node.name for node in solve(graph, allow=allow).order}


@pytest.mark.parametrize("negative", SHARES)
def test_the_least_possible_stays(negative: float, record_property: Callable[[str, object], None]) -> None:
    """Else one fold would have to be left for others (then they go if it is skipped), a scale would have to
    go back in some channels and forward in others, or several sums would have to be solved as one system.
    """
    norms = stay = order = 0
    short = []
    for seed in SEEDS:
        graph = random_net(seed, negative)
        vanish, best = folded(graph), bound(graph)
        norms, stay = norms + len(best.candidates), stay + len(best.candidates) - len(vanish)
        assert len(vanish) <= len(best.vanish), seed
        if len(vanish) < len(best.vanish):
            short.append(seed)
            names = frozenset(node.name for node in best.vanish)
            order += folded(random_net(seed, negative), names) == names
    assert 0 < stay < norms
    record_property(
        "measured",
        f"{len(SEEDS)} random graphs, {negative:.0%} of scales negative: {stay} of {norms} batch norms stay; "
        f"more than must in {len(short)} graphs, in {order} of them because of the order of the folds",
    )
    assert len(short) <= SHORT * len(SEEDS), short


@pytest.mark.parametrize("negative", SHARES)
def test_the_bound_is_the_largest_of_all_subsets(negative: float) -> None:
    for seed in range(ALONE):
        graph = random_net(seed, negative)
        systems, most = Systems(graph), len(bound(graph).vanish)
        names = [node.name for node in systems.candidates]
        for size in range(most + 1, len(names) + 1):
            assert all(any(systems.forbidden(set_)) for set_ in combinations(range(len(names)), size)), seed
        # and what can be folded is never forbidden
        for size in range(len(names)):
            done = folded(random_net(seed, negative), frozenset(names[size:] + names[: size // 2]))
            assert not any(systems.forbidden([names.index(name) for name in done])), seed


def test_the_least_possible_stays_with_operators_of_every_kind(
    record_property: Callable[[str, object], None],
) -> None:
    """What the laws leave out makes more seem possible than is: an addition that comes where another goes, a
    quantized weight whose one scale may run along either axis, zero scales before some sums, pads that would
    all take one and the same shift.
    """
    stay, short = 0, []
    for seed in range(MODELS):
        vanish, best = folded(read(load(random_model(seed)))), bound(read(load(random_model(seed))))
        assert len(vanish) <= len(best.vanish), seed
        stay += len(best.candidates) - len(vanish)
        if len(vanish) < len(best.vanish):
            short.append(seed)
    record_property("measured", f"{MODELS} models: {stay} affine nodes stay, more than must in {len(short)}")
    assert stay > MODELS
    assert len(short) <= UNKNOWN * MODELS, short


def test_what_folds_is_never_forbidden() -> None:
    """By the laws of all roles, in graphs with operators of every kind."""
    met: set[type] = set()
    for seed in range(MODELS):
        graph = read(load(random_model(seed)))
        met |= {type(node.role) for node in graph.nodes}
        systems = Systems(graph)
        done = [systems.candidates.index(node) for node in solve(graph).order]
        assert not any(systems.forbidden(done)), seed
    assert len(met) > len(LAWS) - 3
