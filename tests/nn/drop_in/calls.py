"""Hooks, functional calls, transforms, gradients, odd inputs and errors."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call, grad, hessian, jacrev, jvp, stack_module_state, vmap
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import fuse_conv_bn_eval
from torch.utils.checkpoint import checkpoint

from tests.nn.drop_in import Library, gradients, holds, state, told, values


@holds
def forward_hooks(library: Library) -> Any:
    norm, calls = library.norm(), []
    handles = [
        norm.register_forward_pre_hook(lambda _, args: tuple(2 * x for x in args)),
        norm.register_forward_pre_hook(
            lambda _, args, kw: calls.append((len(args), list(kw))), with_kwargs=True
        ),
        norm.register_forward_hook(lambda _, args, y: y + 1),
        norm.register_forward_hook(lambda *_: calls.append("always"), always_call=True),
        register_module_forward_hook(lambda *_: calls.append("all modules")),
    ]
    found = [norm(values()), norm(input=values()), told(lambda: norm(torch.ones(3)))]
    for handle in handles:
        handle.remove()
    return [*found, norm(values()), calls]


@holds
def backward_hooks(library: Library) -> Any:
    norm, x, seen = library.norm(), values().requires_grad_(), []
    norm.register_full_backward_pre_hook(lambda _, dy: (dy[0] * 2,))
    norm.register_full_backward_hook(lambda _, dx, dy: seen.extend([dx[0], dy[0]]))
    norm.weight.register_hook(lambda g: g * 3)
    norm.bias.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
    norm(x).square().sum().backward()
    return seen, x.grad, norm.weight.grad, norm.bias.grad


@holds
def hooks_on_states(library: Library) -> Any:
    norm, calls = library.norm(), []
    norm.register_state_dict_pre_hook(lambda _, prefix, keep: calls.append(("before", prefix, keep)))
    norm.register_state_dict_post_hook(lambda _, d, prefix, meta: d.update({prefix + "more": torch.ones(1)}))
    norm.register_load_state_dict_post_hook(lambda _, keys: keys.unexpected_keys.clear())
    net = nn.Sequential(norm)
    return list(net.state_dict()), str(net.load_state_dict(net.state_dict())), calls


@holds
def gradients_in_both_modes(library: Library) -> Any:
    found = []
    for options in ({}, {"affine": False}, {"track_running_stats": False}, {"eps": 0.1}):
        for training in (True, False):
            for dims in (1, 2, 3):
                norm = library.norm(dims=dims, **options)
                norm(values(dims))
                x = values(dims).requires_grad_()
                found.append(gradients(norm.train(training)(x), x, *norm.parameters()))
    return found


@holds
def second_gradients(library: Library) -> Any:
    found = []
    for training in (True, False):
        norm, x = library.norm().train(training), values().requires_grad_()
        first = torch.autograd.grad(norm(x).sin().sum(), (x, norm.weight), create_graph=True)
        found.append(torch.autograd.grad(sum(each.square().sum() for each in first), (x, norm.weight)))
    return found


@holds
def graphs_that_are_kept_changed_or_gone(library: Library) -> Any:
    norm, x = library.norm(), values().requires_grad_()
    y = norm(x)
    twice = [gradients_kept(y, x) for _ in range(2)]
    y.sum().backward()
    found = [twice, told(lambda: y.sum().backward())[0]]
    given = values().requires_grad_() * 1
    z = norm(given)
    given.add_(1)
    return [*found, told(lambda: z.sum().backward())[0]]


def gradients_kept(y: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(y.square().sum(), x, retain_graph=True)[0]


@holds
def several_forwards_and_one_backward(library: Library) -> Any:
    norm, x = library.norm(), values().requires_grad_()
    y, z = norm(x), norm(x * 2)
    v = norm.eval()(x)
    return gradients(y + z * 2 + v, x, *norm.parameters()), state(norm)


@holds
def parameters_that_do_not_learn(library: Library) -> Any:
    found = []
    for name in ("weight", "bias"):
        norm, x = library.norm(), values().requires_grad_()
        getattr(norm, name).requires_grad_(False)
        y = norm(x)
        y.square().sum().backward()
        found.append([x.grad, *(p.grad for p in norm.parameters())])
    norm = library.norm().requires_grad_(False)
    with torch.inference_mode():
        inside = norm(values()).requires_grad
    with torch.no_grad():
        quiet = library.norm()(values()).requires_grad
    return found, norm(values()).requires_grad, inside, quiet


@holds
def many_gradients_at_once(library: Library) -> Any:
    norm, x = library.norm(), values().requires_grad_()
    directions = torch.randn(3, *x.shape)
    at_once = torch.autograd.grad(norm(x), (x, *norm.parameters()), directions, is_grads_batched=True)
    few = x.detach()[:1, :, :1, :2]
    sums = torch.autograd.functional.jacobian(lambda x: norm(x).sum((0, 2, 3)), few, vectorize=True)
    return at_once, sums


@holds
def checkpoints(library: Library) -> Any:
    found = []
    for reentrant in (True, False):
        norm, x = library.norm(), values().requires_grad_()
        y = checkpoint(norm, x, use_reentrant=reentrant)
        y.square().sum().backward()
        found.append((y, x.grad, norm.weight.grad, state(norm)))
    return found


@holds
def functional_calls(library: Library) -> Any:
    norm, x = library.norm(), values()
    before = state(norm)
    given = {key: value.detach().clone() + 1 for key, value in norm.state_dict().items()}
    y = functional_call(norm, given, (x,))
    wrong = told(lambda: functional_call(norm, {"nothing": x}, (x,)))
    some = functional_call(norm, {"weight": torch.zeros(8)}, (x,))
    return y, given, wrong[0], some, before, state(norm)


@holds
def transforms(library: Library) -> Any:
    """Of torch.func, in evaluation."""
    norm, x = library.norm().eval(), values()
    parameters = {key: value.detach() for key, value in norm.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(norm, parameters, (x,)).square().mean()

    found = [grad(loss)(parameters, x), vmap(norm)(torch.stack([x, x * 2])), jvp(norm, (x,), (x,))]
    found += [jacrev(loss)(parameters, x), hessian(loss)(parameters, x)["bias"]["bias"]]
    per_example = vmap(grad(loss), in_dims=(None, 0))(parameters, x[:, None])
    several = [library.norm().eval() for _ in range(3)]
    stacked = stack_module_state(several)
    return [*found, per_example, vmap(functools.partial(functional_call, norm), (0, None))(stacked, (x,))]


@holds
def vmap_errors(library: Library) -> Any:
    """In training, statistics that are not mapped cannot be written to."""
    norm, x = library.norm(), values()
    found = [told(lambda: vmap(norm)(torch.stack([x, x])))]
    found.append(told(lambda: vmap(library.norm(track_running_stats=False))(torch.stack([x, x]))))
    stacked = stack_module_state([library.norm() for _ in range(2)])
    run = functools.partial(functional_call, norm)
    return [*found, vmap(run)(stacked, (torch.stack([x, x]),)), stacked[1]]


# Each is right for at most one class.
WRONG = ((8,), (4, 8), (4, 8, 5), (4, 8, 5, 6), (2, 8, 3, 3, 3), (4, 7), (4, 7, 5, 6), (2, 8, 1, 1, 1, 1))


@holds
def errors(library: Library) -> Any:
    found = []
    for dims, shape in itertools.product((1, 2, 3), WRONG):
        norm = library.norm(dims=dims)
        found.append(told(lambda norm=norm, shape=shape: norm(torch.ones(shape))))
    for shape in ((1, 8, 1, 1), (0, 8, 1, 1), (0, 8, 5, 6), (4, 8, 0, 6)):
        found.append(told(lambda shape=shape: library.norm()(torch.ones(shape))))
        found.append(told(lambda shape=shape: library.norm().eval()(torch.ones(shape))))
    found.append(told(lambda: library.norm()(torch.ones(4, 8, 5, 6, dtype=torch.int64))))
    found.append(told(lambda: library.norm()([1.0])))
    found.append(told(lambda: library.norm()())[0])
    return found


@holds
def parameters_of_another_shape(library: Library) -> Any:
    found = []
    for name in ("weight", "bias", "running_mean", "running_var"):
        for shape in ((4,), (1, 8)):
            norm = library.norm()
            new: Any = torch.ones(shape)
            setattr(norm, name, nn.Parameter(new) if name in ("weight", "bias") else new)
            found.append(told(lambda norm=norm: norm(values())))
    return found


@holds
def empty_batches(library: Library) -> Any:
    found = []
    for shape in ((0, 8, 5, 6), (4, 8, 0, 6)):
        norm, x = library.norm(), torch.ones(shape, requires_grad=True)
        y = norm(x)
        y.sum().backward()
        found.append((tuple(y.shape), x.grad.shape, norm.weight.grad, state(norm)))
    return found


@holds
def results_are_new(library: Library) -> Any:
    """Neither the input nor, in evaluation, anything else is written to or shared."""
    norm, x = library.norm(), values()
    given, version = x.clone(), x._version
    y = norm(x)
    y.relu_()
    z = norm.eval()(x)
    return (
        torch.equal(given, x),
        x._version == version,
        y.data_ptr() != x.data_ptr(),
        z,
    )


@holds
def orders_of_dimensions(library: Library) -> Any:
    x = values()
    last = x.contiguous(memory_format=torch.channels_last)
    views = [
        last,
        x.transpose(2, 3),
        x[:, :, ::2],
        last[:1].expand(4, 8, 5, 6),
        last[:, :, :1, :1].expand(4, 8, 5, 6),
    ]
    outputs = [library.norm()(view) for view in views]
    return outputs, [y.stride() for y in outputs]


@holds
def unusual_values(library: Library) -> Any:
    found = []
    for change in (0.0, 1e4, torch.inf, torch.nan):
        norm, x = library.norm(momentum=1.0), values()
        x[0, :4] = change
        found.append((norm(x).nan_to_num(7.0), norm.running_var.nan_to_num(7.0)))
        z = x.clone().requires_grad_()
        library.norm().eval()(z)[1:].square().sum().backward()
        found.append(z.grad)
    return found


@holds
def autocast(library: Library) -> Any:
    net = library.net()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = net(torch.randn(4, 3, 8, 8))
    y.float().sum().backward()
    return y.dtype, net[1].weight.grad.dtype, net[1].running_var.dtype, net[1].num_batches_tracked


@holds
def what_reads_networks(library: Library) -> Any:
    """torch.fx, torch.export and torch's own fold see a batch norm."""
    net, x = library.net().eval(), torch.randn(2, 3, 8, 8)
    traced = fx.symbolic_trace(net)
    calls = [(node.op, str(node.target)) for node in traced.graph.nodes]
    program = torch.export.export(net, (x,))
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    folded = fuse_conv_bn_eval(net[0], net[1])
    return calls, traced(x), targets, folded(x), nn.SyncBatchNorm.convert_sync_batchnorm(net)(x)
