"""A small network of inverted residuals on real images: trained, slimmed in several ways, fine-tuned.

The blocks are those of MobileNetV2 and of what timm builds from it: a 1 x 1 convolution to more channels, a
depthwise one, a 1 x 1 convolution back, and a connection that skips all three.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import bnfold.compress
import bnfold.nn
from bnfold.compress import SlimReport
from bnfold.progress import progress
from tools._data.images import PART, Images, outputs

RATIO = 0.5
STRENGTH = 0.02  # of the penalty
BATCH, EXAMPLES = 64, 32
LEARNING_RATE, MOMENTUM, DECAY = 0.1, 0.9, 5e-4
FINE_RATES = (0.005, 0.02)  # of fine-tuning: the first is the demo's, both are compared


class Block(nn.Module):
    """An inverted residual; it skips where height, width and channels stay."""

    def __init__(self, inputs: int, hidden: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.expand = nn.Conv2d(inputs, hidden, 1, bias=False)
        self.norm1 = bnfold.nn.BatchNorm2d(hidden, activation="relu")
        self.depthwise = nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False)
        self.norm2 = bnfold.nn.BatchNorm2d(hidden, activation="relu")
        self.project = nn.Conv2d(hidden, outputs, 1, bias=False)
        self.norm3 = bnfold.nn.BatchNorm2d(outputs)
        self.skips = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(self.expand(x))
        y = self.project(self.norm2(self.depthwise(y)))
        result: Tensor = self.norm3(y, residual=x if self.skips else None)
        return result


class Net(nn.Module):
    """A convolution, three inverted residuals (the second halves the sides), a 1 x 1 convolution, a mean."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.norm = bnfold.nn.BatchNorm2d(16, activation="relu")
        self.blocks = nn.Sequential(Block(16, 48, 16), Block(16, 48, 24, stride=2), Block(24, 72, 24))
        self.head = nn.Conv2d(24, 64, 1, bias=False)
        self.last = bnfold.nn.BatchNorm2d(64, activation="relu")
        self.classifier = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(self.head(self.blocks(self.norm(self.stem(x)))))
        result: Tensor = self.classifier(x.mean((2, 3)))
        return result


class Plan(NamedTuple):
    """How long to train, and with which seed."""

    seed: int
    epochs: int
    fine_epochs: int


def trained(images: Images, classes: int, plan: Plan, strength: float) -> Net:
    """A network in eval mode, trained with the penalty on the batch norms whose channels can go."""
    torch.manual_seed(plan.seed)
    net = Net(classes)
    only = bnfold.compress.prunable(net, images.train[:2])
    train(net, images, plan.seed, plan.epochs, LEARNING_RATE, strength, only)
    return net.eval()


def train(
    net: nn.Module,
    images: Images,
    seed: int,
    epochs: int,
    rate: float,
    strength: float = 0.0,
    only: tuple[str, ...] = (),
) -> None:
    """Gradient descent with momentum, its rate falling to 0 along a cosine. gamma and beta do not decay."""
    generator = torch.Generator().manual_seed(seed)
    decay = [value for value in net.parameters() if value.ndim > 1]
    rest = [value for value in net.parameters() if value.ndim <= 1]
    groups = [{"params": decay, "weight_decay": DECAY}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, rate, momentum=MOMENTUM, nesterov=True)
    steps = epochs * (len(images.train) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    net.train()
    with progress("training") as advance:
        for _ in range(epochs):
            order = torch.randperm(len(images.train), generator=generator)
            for chosen in order[: len(order) // BATCH * BATCH].split(BATCH):
                loss = nn.functional.cross_entropy(net(images.train[chosen]), images.train_labels[chosen])
                if strength:
                    loss = loss + strength * bnfold.compress.gamma_penalty(net, only=only)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                advance(schedule.last_epoch, steps)


def slimmed(
    net: nn.Module,
    images: Images,
    plan: Plan,
    importance: Any = "mean",
    recalibrate: bool = True,
    also: Callable[[nn.Module], object] = lambda module: None,
) -> tuple[nn.Module, SlimReport]:
    """Half of the channels gone, fine-tuned without a penalty, folded. also: to do before fine-tuning."""

    def tune(module: nn.Module) -> None:
        also(module)
        fine_tune(module, images, plan, FINE_RATES[0])

    return bnfold.compress.slim(
        net,
        images.train[:EXAMPLES],
        ratio=RATIO,
        importance=importance,
        loader=images.train.split(PART) if recalibrate else None,
        finetune=tune,
        evaluate=lambda module: accuracy(module, images),
    )


def anew(net: nn.Module, images: Images, plan: Plan) -> float:
    """The accuracy of the slimmed network if it is trained from new random weights, for as long in all."""
    small, _ = bnfold.compress.slim(net, images.train[:EXAMPLES], ratio=RATIO, fold=False)
    torch.manual_seed(plan.seed)
    for part in small.modules():
        if isinstance(part, (nn.Conv2d, nn.Linear, nn.BatchNorm2d)):
            part.reset_parameters()
    train(small, images, plan.seed, plan.epochs + plan.fine_epochs, LEARNING_RATE)
    return accuracy(small.eval(), images)


def fine_tune(module: nn.Module, images: Images, plan: Plan, rate: float) -> None:
    train(module, images, plan.seed + 1000, plan.fine_epochs, rate)


class Way(NamedTuple):
    """One way to choose channels. tuned: the accuracy in the end, by the rate of fine-tuning."""

    report: SlimReport
    tuned: dict[float, float]


def compared(net: nn.Module, plain: nn.Module, images: Images, plan: Plan) -> dict[str, Way]:
    """Ways to choose the channels, and to go on.

    Args:
        net: trained with the penalty.
        plain: trained without it.
        images: to fine-tune, recalibrate and measure with.
        plan: seed and epochs.
    """

    def by_chance(name: str, gammas: list[Tensor]) -> Tensor:
        """The same numbers, and so as many channels from each group, but given to others."""
        mean = torch.stack(gammas).mean(0)
        generator = torch.Generator().manual_seed(plan.seed + zlib.crc32(name.encode()))
        return mean[torch.randperm(len(mean), generator=generator)]

    ways: dict[str, tuple[nn.Module, Any, bool]] = {
        "mean": (net, "mean", True),
        "max": (net, "max", True),
        "weighted": (net, "weighted", True),
        "mean, not recalibrated": (net, "mean", False),
        "by chance": (net, by_chance, True),
        "mean, without the penalty": (plain, "mean", True),
    }
    found = {}
    for name, (of, importance, again) in ways.items():
        tuned: dict[float, float] = {}

        def others(module: nn.Module, again: bool = again, tuned: dict[float, float] = tuned) -> None:
            for rate in FINE_RATES[1:]:
                other = copy.deepcopy(module)
                fine_tune(other, images, plan, rate)
                if again:
                    bnfold.nn.recalibrate(other, images.train.split(PART))
                tuned[rate] = accuracy(other.eval(), images)

        _, report = slimmed(of, images, plan, importance, again, others)
        assert report.steps[-1].value is not None
        found[name] = Way(report, {FINE_RATES[0]: report.steps[-1].value, **tuned})
    return found


def accuracy(module: nn.Module, images: Images) -> float:
    return images.accuracy(outputs(module, images.test))
