"""Random networks, as people write them: what was folded rightly is not refuted, what was changed then is not
proved.
"""

from __future__ import annotations

from random import Random

import pytest
from torch.export import ExportedProgram

from tests.torch_graph.random_modules import network
from tests.torch_proof.folds import folded, put, value

CHANGES = 3


@pytest.mark.parametrize("seed", range(5, 8))
def test_random_networks(seed: int) -> None:
    """Each number that is changed is read: what nobody reads is gone."""
    module, x = network(seed)
    found = folded(module, x)
    assert found.proof.status != "refuted", found.proof
    rng = Random(seed)
    for _ in range(CHANGES):
        target = rng.choice(
            [name for name in read(found.after) if value(found.after, name).is_floating_point()]
        )

        def change(program: ExportedProgram, target: str = target) -> None:
            new = value(program, target).detach().clone()
            place = rng.randrange(new.numel())
            new.view(-1)[place] += 0.01 + 0.01 * abs(new.view(-1)[place])
            put(program, target, new)

        wrong = found.changed(change)
        assert wrong.status != "proved", target


def read(program: ExportedProgram) -> list[str]:
    """The parameters that calls read."""
    names = program.graph_signature.inputs_to_parameters
    return [names[node.name] for node in program.graph.nodes if node.name in names and node.users]
