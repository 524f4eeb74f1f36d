"""Stale weights are never used: whatever changes them, and whoever's they are."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from bnfold.integrations.torch_compile import backend as module_of_backend
from bnfold.integrations.torch_compile import folded as module_of_folded
from bnfold.integrations.torch_compile.program import folded
from tests.integrations.torch_compile.nets import compiled, error, fresh, net, x
from tests.integrations.torch_compile.test_backend import reasons
from tests.torch_graph.modules import Fn, randomize

__all__ = ["fresh"]

ROUNDING = 1e-5
pytestmark = pytest.mark.usefixtures("fresh")


def replaced(module: Any) -> None:
    module[0].weight = nn.Parameter(torch.randn_like(module[0].weight))


def other_data(module: Any) -> None:
    module[0].weight.data = torch.randn_like(module[0].weight)


def one_step(module: Any) -> None:
    """Of training, by torch's own kernels, which do not count this as a new version of the statistics."""
    module.train()(x())
    module.eval()


def one_step_in_inference_mode(module: Any) -> None:
    with torch.inference_mode():
        one_step(module)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "written into": lambda m: m[0].weight.mul_(2),
    "loaded": lambda m: m.load_state_dict(net(3).state_dict()),
    "replaced": replaced,
    "other data": other_data,
    "statistics written into": lambda m: m[3].running_var.add_(1),
    "statistics replaced": lambda m: m[5].register_buffer("running_mean", torch.ones(4)),
    "a training step": one_step,
    "a training step in inference mode": one_step_in_inference_mode,
    "eps": lambda m: setattr(m[3], "eps", 0.1),
    "another scale": lambda m: m[3].weight.neg_(),
}


@torch.no_grad()
def test_a_change_is_noticed_at_the_call() -> None:
    """New numbers are written into what is compiled: torch's "eager" reads weights at each call."""
    module = net()
    run = torch.compile(module, backend=module_of_backend.backend, options={"backend": "eager"})
    batch = x()
    for name, change in CHANGES.items():
        before = run(batch)
        change(module)
        for _ in range(2):
            assert error(run, module, batch) < ROUNDING, name
        assert not torch.equal(run(batch), before), name


@torch.no_grad()
def test_a_change_is_noticed_where_weights_are_compiled_in() -> None:
    module = net()
    run, batch = compiled(module), x()
    for count, name in enumerate(("written into", "replaced", "a training step"), 2):
        assert run.error(batch) < ROUNDING
        CHANGES[name](module)
        for _ in range(2):
            assert run.error(batch) < ROUNDING, name
        assert run.norms == [0] * count


@torch.no_grad()
def test_one_compilation_serves_a_training_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """New numbers are written into what is compiled, also where sizes are free."""
    folds = []

    def counted(*arguments: Any) -> Any:
        folds.append(arguments)
        return folded(*arguments)

    monkeypatch.setattr(module_of_backend, "folded", counted)
    module = net()
    run = torch.compile(module, backend=module_of_backend.backend, options={"backend": "eager"})
    for _ in range(3):
        one_step(module)
        for size in (2, 5, 3):
            assert error(run, module, x(size)) < ROUNDING
    assert len(folds) == 2 + 2  # of one size and of any size, and again after each further step


@torch.no_grad()
def test_free_sizes_that_cannot_be_compiled_anew_run_as_captured(caplog: pytest.LogCaptureFixture) -> None:
    module = net()
    run = compiled(module, dynamic=True)
    assert run.error(x(4)) < ROUNDING
    count = len(run.norms)
    assert set(run.norms) == {0}  # where dynamic=True makes eps and momentum inputs as well
    module[0].weight.mul_(2)
    for size in (4, 5):
        assert run.error(x(size)) < ROUNDING
    assert len(run.norms) == count
    assert ["done for fixed sizes alone" in reason for reason in reasons(caplog)] == [True]


@torch.no_grad()
def test_two_modules_of_one_class_have_their_own_weights() -> None:
    """torch.compile takes the same graph for both."""
    pairs = []
    for module in (net(1), net(2)):
        run = torch.compile(module, backend=module_of_backend.backend, options={"backend": "eager"})
        pairs.append((run, module))
    for factor in (1, 2):
        pairs[1][1][0].weight.mul_(factor)
        for run, module in pairs:
            assert error(run, module, x()) < ROUNDING


@torch.no_grad()
def test_many_modules_in_one_loop_share_what_is_compiled(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module_of_folded, "MOST", 2)
    nets = [net(seed) for seed in range(4)]
    which = Fn(lambda m, batch: m.part(batch), part=nets[0])
    run = compiled(which)
    for _ in range(2):
        for each in nets:
            which.part = each
            assert run.error(x()) < ROUNDING
    assert run.norms == [0, 0, 2]  # the last one serves all the others
    assert "more than 2 modules" in reasons(caplog)[0]


@torch.no_grad()
def test_new_weights_that_do_not_fold_run_as_captured(caplog: pytest.LogCaptureFixture) -> None:
    """A negative scale does not pass a MaxPool; what does not fold is not tried again at each call."""
    layers = (nn.Conv2d(3, 4, 1), nn.MaxPool2d(2), nn.BatchNorm2d(4), nn.ReLU())
    module = randomize(nn.Sequential(*layers), negative=False)
    run = compiled(module)
    assert run.error(x()) < ROUNDING
    module[2].weight.neg_()
    for _ in range(2):
        assert run.error(x()) < ROUNDING
    assert run.norms == [0, 1]
    assert [reason.partition(": nothing")[2] for reason in reasons(caplog)] == [
        " is folded in a graph: weights have changed: nothing folds"
    ]


@torch.no_grad()
def test_statistics_that_nobody_counts_are_compared_by_value() -> None:
    """Those of a functional batch norm, and all where the collector of garbage has been told to forget."""

    def forward(m: Any, batch: Tensor) -> Tensor:
        return batch_norm(m.c(batch), m.mean, m.var, training=m.training)

    module = Fn(forward, c=nn.Conv2d(3, 4, 1)).eval()
    module.register_buffer("mean", torch.zeros(4))
    module.register_buffer("var", torch.ones(4))
    forgotten = net()
    gc.freeze()
    try:
        runs = [compiled(module), compiled(forgotten)]
        assert all(run.error(x()) < ROUNDING for run in runs)
        module.train()(x())
        module.eval()
        one_step(forgotten)
        assert all(run.error(x()) < ROUNDING for run in runs)
    finally:
        gc.unfreeze()
    assert [run.norms for run in runs] == [[0, 0], [0, 0]]


@torch.no_grad()
def test_weights_that_are_swapped_for_a_while_come_back() -> None:
    """For their moving average, say. What a fold has left as it was is memory of the module: it stays so."""
    module = nn.Sequential(*net(), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    last, batch = module[-1].weight, x()
    run = torch.compile(module, backend=module_of_backend.backend, options={"backend": "eager"})
    assert error(run, module, batch) < ROUNDING
    backup, kept = last.data, last.clone()
    last.data = torch.randn_like(last)
    assert error(run, module, batch) < ROUNDING
    assert torch.equal(backup, kept)
    last.data = backup
    assert error(run, module, batch) < ROUNDING


@torch.no_grad()
def test_parameters_made_in_inference_mode_cannot_be_watched(caplog: pytest.LogCaptureFixture) -> None:
    with torch.inference_mode():
        module = net()
        run = compiled(module)
        assert run.error(x()) < ROUNDING
        module[0].weight.mul_(2)
        assert run.error(x()) < ROUNDING
    assert set(run.norms) == {2}
    assert "made in inference mode" in reasons(caplog)[0]


@torch.no_grad()
def test_weights_that_the_graph_itself_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where inductor's freezing is on for the whole process."""
    monkeypatch.setattr(torch._dynamo.config, "prepare_freezing", True)
    module = net()
    run = compiled(module)
    assert run.error(x()) < ROUNDING
    assert run.norms == [0]
    for change in ("written into", "a training step"):
        CHANGES[change](module)
        assert run.error(x()) < ROUNDING


@torch.no_grad()
def test_what_is_handed_on_can_be_pickled() -> None:
    """Inductor keeps what it compiles under a key that it makes of the graph in this way."""
    graphs: list[Any] = []

    def inner(graph: Any, arguments: Any, **_: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch.compile(net(), backend=module_of_backend.backend, options={"backend": inner})(x())
    again = pickle.loads(pickle.dumps(graphs[0]))
    batch = x()
    assert torch.equal(again(batch)[0], graphs[0](batch)[0])
    assert copy.deepcopy(graphs[0]).code == graphs[0].code


@torch.no_grad()
def test_what_compiles_may_ask_torch_to_start_again() -> None:
    """It does so by an exception, which is not a failed fold."""
    tries = []

    def inner(graph: Any, arguments: Any, **_: Any) -> Any:
        tries.append(sum("batch_norm" in str(node.target) for node in graph.graph.nodes))
        if len(tries) == 1:
            raise torch._dynamo.exc.TensorifyScalarRestartAnalysis(restart_reason="once more")
        return graph.forward

    module = net()
    run = torch.compile(module, backend=module_of_backend.backend, options={"backend": inner})
    assert error(run, module, x()) < ROUNDING
    assert tries == [0, 0]
