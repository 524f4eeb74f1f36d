"""Modes, running statistics, copies, files, and what loads into what."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from tests.nn.drop_in import Library, holds, state, told, values


@holds
def modes(library: Library) -> Any:
    net, found = library.net(), []
    for change in (net.train, net.eval, net[1].train, net.train, net[1].eval):
        change()
        x = torch.randn(2, 3, 8, 8)
        found.append(([part.training for part in net], net(x), state(net)))
    return found


@holds
def running_statistics(library: Library) -> Any:
    found = []
    for momentum in (0.1, 1.0, 0.0, None):
        for dims in (1, 2, 3):
            norm = library.norm(dims=dims, momentum=momentum)
            found += [(norm(values(dims)), state(norm)) for _ in range(3)]
            found.append(norm.eval()(values(dims)))
    return found


@holds
def no_running_statistics(library: Library) -> Any:
    norm = library.norm(track_running_stats=False)
    found = [norm(values()), norm.eval()(values()), list(norm.state_dict()), norm.running_mean]
    norm = library.norm()
    norm(values())
    norm.track_running_stats = False
    found += [norm(values()), norm.eval()(values()), state(norm)]
    norm.running_mean = norm.running_var = None
    found += [norm(values()), norm.train()(values()), norm.num_batches_tracked]
    return found


@holds
def one_running_statistic(library: Library) -> Any:
    found = []
    for name in ("running_mean", "running_var"):
        norm = library.norm()
        setattr(norm, name, None)
        found += [told(lambda norm=norm: norm(values())), told(lambda norm=norm: norm.eval()(values()))]
    return found


@holds
def resets(library: Library) -> Any:
    norm = library.norm()
    norm(values())
    norm.reset_running_stats()
    found = [state(norm)]
    norm(values())
    norm.reset_parameters()
    return [*found, state(norm)]


@holds
def names_and_order(library: Library) -> Any:
    net = library.net()
    lists = [
        list(net.state_dict()),
        [n for n, _ in net.named_parameters()],
        [n for n, _ in net.named_buffers()],
    ]
    attributes = [getattr(net[1], name) for name in ("num_features", "eps", "momentum", "affine", "_version")]
    return lists, attributes, str(net), isinstance(net[1], nn.modules.batchnorm._BatchNorm)


@holds
def copies(library: Library) -> Any:
    norm = library.norm()
    norm(values())
    deep, shallow = copy.deepcopy(norm), copy.copy(norm)
    norm(values())
    shared = nn.ModuleList([norm, norm])
    again = copy.deepcopy(shared)
    return state(norm), state(deep), shallow.weight is norm.weight, again[0] is again[1], deep(values())


@holds
def pickles(library: Library) -> Any:
    norm = library.norm(momentum=0.3).eval()
    norm.note = "kept"
    again = pickle.loads(pickle.dumps(norm))
    file = io.BytesIO()
    torch.save(library.net(), file)
    file.seek(0)
    net = torch.load(file, weights_only=False)
    return again.note, again.momentum, again.training, state(again), state(net), type(again) is type(norm)


def _weights(module: nn.Module) -> dict[str, Tensor]:
    """As they come back from a file."""
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    loaded: dict[str, Tensor] = torch.load(file, weights_only=True)
    return loaded


@holds
def state_dicts_of_both(library: Library) -> Any:
    for a, b in ((library, library.other), (library.other, library)):
        one, other = a.net(), b.net()
        one(torch.randn(4, 3, 8, 8))
        other.load_state_dict(_weights(one))
        x = torch.randn(2, 3, 8, 8)
        torch.testing.assert_close(one.eval()(x), other.eval()(x), rtol=1e-5, atol=1e-5)
    return one.state_dict()._metadata["1"], x


@holds
def loading_what_does_not_fit(library: Library) -> Any:
    norm, found = library.norm(), []
    given = state(norm)
    for change in (
        lambda d: d.pop("running_var"),
        lambda d: d.pop("num_batches_tracked"),
        lambda d: d.update(weight=torch.ones(4)),
        lambda d: d.update(more=torch.ones(4)),
    ):
        wrong = dict(given)
        change(wrong)
        found.append(told(lambda wrong=wrong: norm.load_state_dict(wrong)))
        found.append(told(lambda wrong=wrong: norm.load_state_dict(wrong, strict=False)))
    return found, state(norm)


@holds
def states_from_before_batches_were_counted(library: Library) -> Any:
    """Version 1 of torch's format."""
    norm, old = library.norm(), library.norm().state_dict()
    del old["num_batches_tracked"]
    old._metadata[""]["version"] = 1
    return str(norm.load_state_dict(old)), state(norm)


@holds
def assigned_states_and_the_meta_device(library: Library) -> Any:
    with torch.device("meta"):
        norm = library.norm()
    given = library.other.norm().state_dict()
    norm.load_state_dict(given, assign=True)
    with torch.device("meta"):
        shape = library.norm()(torch.empty(4, 8, 5, 6)).shape
        empty = library.norm().to_empty(device="cpu")
    empty.reset_parameters()
    return norm.weight.device.type, norm(values()), tuple(shape), state(empty)


@holds
def optimizers_that_go_on_with_the_other_library(library: Library) -> Any:
    """Five steps, of which the last are made by the other library's network and a new optimizer."""
    found = []
    for kind, options in ((torch.optim.SGD, {"momentum": 0.9}), (torch.optim.AdamW, {})):
        net = library.net()
        optimizer = kind(net.parameters(), lr=0.01, **options)
        for step in range(5):
            if step == 3:
                again = library.other.net()
                again.load_state_dict(_weights(net))
                resumed = kind(again.parameters(), lr=0.01, **options)
                resumed.load_state_dict(optimizer.state_dict())
                net, optimizer = again, resumed
            loss = nn.functional.cross_entropy(net(torch.randn(8, 3, 8, 8)), torch.arange(8) % 3)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss)
    return found


@holds
def parametrizations(library: Library) -> Any:
    norm, plain = library.norm(), library.norm()
    parametrize.register_parametrization(norm, "weight", nn.Softplus())
    parametrize.register_parametrization(norm, "bias", nn.Tanh())
    x = values()
    y = norm(x)
    y.square().sum().backward()
    found = [y, norm.parametrizations.weight.original.grad, list(norm.state_dict()), copy.deepcopy(norm)(x)]
    found.append(parametrize.type_before_parametrizations(norm) is type(plain))
    with parametrize.cached():
        found.append(norm(x))
    parametrize.remove_parametrizations(norm, "weight")
    parametrize.remove_parametrizations(norm, "bias", leave_parametrized=False)
    return [*found, norm.eval()(x), state(norm), type(norm) is type(plain)]


@holds
def pruning_masks(library: Library) -> Any:
    norm = library.norm()
    prune.l1_unstructured(norm, "weight", 0.5)
    found = [norm(values()), list(norm.state_dict())]
    prune.remove(norm, "weight")
    return [*found, norm(values()), list(norm.state_dict())]


@holds
def averages_of_models(library: Library) -> Any:
    found = []
    for average in (None, get_ema_multi_avg_fn(0.9)):
        net = library.net()
        model = AveragedModel(net, multi_avg_fn=average, use_buffers=True)
        for _ in range(3):
            net(torch.randn(4, 3, 8, 8))
            model.update_parameters(net)
        update_bn([torch.randn(4, 3, 8, 8) for _ in range(3)], model)
        found.append(state(model))
    return found


@holds
def types(library: Library) -> Any:
    norm, found = library.norm(), []
    for kind in (torch.float64, torch.bfloat16, torch.float32):
        norm.to(kind)
        found.append(
            (norm(values().to(kind)).dtype, {key: value.dtype for key, value in norm.state_dict().items()})
        )
    return found
