"""Train with a penalty on the scales, take out the channels that it made small, recalibrate, fold.

1. Which channels belong together: groups.py. 2. Which go: choose.py and plan.py, with a check. 3. They
leave: layers.py. 4. `bnfold.nn.recalibrate`, the caller's fine-tuning, `bnfold.fold_module`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from bnfold.api.fold_module import fold_module
from bnfold.compress.choose import Importance
from bnfold.compress.count import Count, counts, parameters
from bnfold.compress.groups import PruningGroups
from bnfold.compress.layers import prune
from bnfold.compress.plan import PruneOptions, PrunePlan, plan_pruning
from bnfold.compress.report import GroupChange, LayerChange, SlimReport, Step
from bnfold.errors import UsageError, explained
from bnfold.nn.recalibrate import recalibrate
from bnfold.options import known
from bnfold.torch_graph.module.checks import check_module, copied
from bnfold.verify.modules import outputs
from bnfold.wrappers import check_kind, inner_name

__all__ = ["prunable", "slim"]

_Norm = nn.modules.batchnorm._BatchNorm


@torch.inference_mode(False)
def slim(
    module: nn.Module,
    example_inputs: Any,
    kwargs: Mapping[str, Any] | None = None,
    *,
    ratio: float = 0.5,
    importance: str | Importance = "mean",
    ignored: Collection[str] = (),
    floor: float = 0.1,
    round_to: int = 1,
    loader: Iterable[Any] | None = None,
    finetune: Callable[[nn.Module], object] | None = None,
    fold: bool = True,
    evaluate: Callable[[nn.Module], float] | None = None,
    verify: bool = True,
    inplace: bool = False,
) -> tuple[nn.Module, SlimReport]:
    """Take out of a trained network the channels whose batch norms scale them least, and fold what is left.

    Train with `gamma_penalty` first. Channels that can only go together (of layers that are added, of a
    depthwise convolution and what it reads) are one channel with several |gamma|. All of a network's channels
    are ranked together; |gamma| of different layers is comparable as far as what reads them is.

    What cannot go stays, and the report says why: channels of the network's inputs and outputs (so those of a
    classifier's last layer), of layers that mix channels (group norm, attention), of layers without a batch
    norm, and those that the module's own code divides or counts. Parameters that
    change are new objects: make the optimizer anew.

    Args:
        module: a trained network; any mode. Not wrapped (DataParallel, torch.compile).
        example_inputs: a tensor, or a tuple of positional arguments, on the module's device.
        kwargs: keyword arguments.
        ratio: which share to remove of all batch norm channels that can go: 0 < ratio < 1.
        importance: of a channel: "mean" or "max" of its |gamma|; "weighted": the mean times the Euclidean
            norm of the weights that read it, which stays the same if a scale moves into the next layer; or
            a function of the group's name and its |gamma| (a list of tensors [channels]), giving [channels].
        ignored: names of layers, or of modules with all their layers, that keep all channels that they make.
        floor: the share of each group's channels that stays in any case; at least one channel.
        round_to: channels are left in multiples of that (8, say, for hardware), where there are so many.
        loader: what `bnfold.nn.recalibrate` takes: run after pruning, and again after `finetune`.
        finetune: called with the pruned module in training mode; what it returns is not looked at.
        fold: fold the batch norms that are left, in eval mode.
        evaluate: called after each step with the module in eval mode, under `torch.no_grad`; gives a number,
            the accuracy, say, which the report lists.
        verify: check on the example inputs that the pruned network computes what the given one does with the
            removed channels' weights set to 0; layers for which that is not so keep their channels. And check
            the fold.
        inplace: change `module` itself. What `loader`, `finetune` or `evaluate` raise leaves it pruned.

    Returns:
        The slimmed module (in eval mode if folded, else in the modes that it was in), and the report.

    Raises:
        UsageError: an argument is wrong; torch-pruning is absent or cannot follow the module; there is no
            batch norm to prune by, or nothing can go.
        VerifyError: the fold changed what the network computes.
    """
    args, options = _arguments(module, example_inputs, kwargs, ignored)
    asked = PruneOptions(ratio, importance, floor, round_to, verify)
    if finetune is not None and isinstance(loader, Iterator):
        raise UsageError("with finetune, loader is read twice: give one that can be, a list or a DataLoader")
    plain = copied(module).eval()
    before = _run(plain, args, options)
    groups = PruningGroups(copy.deepcopy(plain), args, options, ignored)
    plan = plan_pruning(plain, groups, args, options, asked)

    steps: list[Step] = []
    work = module if inplace else copied(module)
    modes = {part: part.training for part in work.modules()}

    def step(name: str, now: nn.Module) -> None:
        now.eval()
        norms = sum(isinstance(part, _Norm) for part in now.modules())
        steps.append(Step(name, parameters(now), norms, _value(evaluate, now)))

    step("trained", plain)
    prune(work, plan.removals)
    step("pruned", work)
    report = _report(asked, plan, groups, before, counts(work, args, options))
    report.steps = steps
    if loader is not None:
        recalibrate(work, loader)
        step("recalibrated", work)
    if finetune is not None:
        work.train()
        finetune(work)
        step("fine-tuned", work)
        if loader is not None:
            recalibrate(work, loader)
            step("recalibrated again", work)
    if loader is None:
        report.notes.append("not recalibrated: no loader was given")
    if not fold:
        for part, mode in modes.items():
            part.training = mode
        return work, report
    work, report.folded = fold_module(work, args, options, inplace=True, verify=verify)
    step("folded", work)
    return work, report


@torch.inference_mode(False)
def prunable(
    module: nn.Module,
    example_inputs: Any,
    kwargs: Mapping[str, Any] | None = None,
    *,
    ignored: Collection[str] = (),
) -> tuple[str, ...]:
    """The names of the batch norms whose channels `slim` can remove, for `gamma_penalty(module, only=...)`.

    Args:
        module: as for `slim`; it is not changed.
        example_inputs: as for `slim`.
        kwargs: as for `slim`.
        ignored: as for `slim`.

    Raises:
        UsageError: as for `slim`.
    """
    args, options = _arguments(module, example_inputs, kwargs, ignored)
    plain = copied(module).eval()
    _run(plain, args, options)
    groups = PruningGroups(plain, args, options, ignored).all
    found = {norm.layer for group in groups if not group.why for norm in group.ruling}
    return tuple(name for name, _ in module.named_modules() if name in found)


def _arguments(
    module: Any, example_inputs: Any, kwargs: Mapping[str, Any] | None, ignored: Collection[str]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the module is called with, once it is known to be one that can be slimmed."""
    check_kind(module, "slim")
    check_module(module)
    if inner := inner_name(module):
        raise UsageError(f"{type(module).__name__} wraps a module: slim its .{inner}, and wrap the result")
    if not any(isinstance(part, _Norm) and part.weight is not None for part in module.modules()):
        raise UsageError(f"{type(module).__name__} has no batch norm with a scale to prune by")
    if isinstance(ignored, str):
        raise UsageError(f"ignored takes a collection of names: ({ignored!r},)")
    names = [name for name, _ in module.named_modules(remove_duplicate=False) if name]
    known("ignored", ignored, names, "such layer")
    args = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    plain: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_map(_followed, (args, dict(kwargs or {})))
    return plain


def _followed(leaf: Any) -> Any:
    """A tensor that gradients can be followed through; those from inference mode cannot."""
    return leaf.clone() if isinstance(leaf, torch.Tensor) and leaf.is_inference() else leaf


def _run(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Count]:
    """What the module holds and does on the example inputs."""
    with explained(f"{type(module).__name__} does not run on the example inputs"):
        outputs(module, args, kwargs)
    return counts(module, args, kwargs)


def _value(evaluate: Callable[[nn.Module], float] | None, module: nn.Module) -> float | None:
    if evaluate is None:
        return None
    with torch.no_grad():
        found: Any = evaluate(module)
    module.eval()
    try:
        return float(found)
    except (TypeError, ValueError, RuntimeError):
        raise UsageError(f"evaluate gave {type(found).__name__}, not a number") from None


def _report(
    asked: PruneOptions,
    plan: PrunePlan,
    groups: PruningGroups,
    before: dict[str, Count],
    after: dict[str, Count],
) -> SlimReport:
    layers = []
    for name, (kind, *old) in before.items():
        _, *new = after[name]
        layers.append(LayerChange(name, kind, *zip(old, new, strict=True)))
    changes = []
    for group in groups.all:
        gone = tuple(sorted(plan.choice.gone.get(group.name, ())))
        makers = tuple(member.layer for member in group.members if member.side != "in")
        channels = (group.channels, group.channels - len(gone))
        changes.append(GroupChange(group.name, makers, channels, gone, group.why))
    choice = plan.choice
    found = SlimReport(asked.ratio, choice.reached, choice.threshold, layers, changes)
    found.verification = plan.verification
    if choice.most < asked.ratio:
        found.notes.append(
            f"no more than {choice.most:.1%} could go: floor={asked.floor:g} and round_to={asked.round_to} "
            "keep the rest"
        )
    if groups.unseen:
        found.notes.append(f"not seen by torch-pruning, and so not pruned: {', '.join(groups.unseen)}")
    if plan.verification is not None and plan.verification.status == "not run":
        found.notes.append(f"not verified: {plan.verification.reason}")
    return found
