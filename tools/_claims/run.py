"""One run of tools/claims: a network with or without batch norm, trained for a fixed number of steps.

Two runs that differ in batch norm alone have the same split of the images, the same initial weights and the
same order of batches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import bnfold.nn
from tools._data.images import CLASSES, Images, digits

WIDTH = 16  # channels of the first half of the convolutions; the second half has twice as many
BATCH = 64
MOMENTUM = 0.9
TARGET = 0.2  # the training loss whose first step is told
GUESSING = math.log(CLASSES)  # the loss of a network that knows nothing
LEARNED = 0.9  # of it: below that a network has learned something


class Setting(NamedTuple):
    """What a run is told."""

    layers: int  # convolutions
    batch_norm: bool
    learning_rate: float
    scale: float  # of all initial weights, in multiples of the usual ones
    seed: int


@dataclass(frozen=True)
class Result:
    """How a run ended.

    ending: "nan" (the loss was not finite, and the run ended there, or the outputs at the end are not),
    "stuck" (the loss at the end is about that of guessing), "learned". steps: to a training loss of TARGET,
    None if never; the training loss is the mean over an epoch's batches. loss: the training loss at the end.
    train, test: accuracy in eval mode (1 in 10 for "nan"). recalibrated: the test accuracy with statistics of
    all training images.
    """

    ending: str
    steps: int | None
    loss: float | None
    train: float
    test: float
    recalibrated: float


def run(setting: Setting, epochs: int) -> dict[str, Any]:
    """Train and measure; the setting and the result as plain data. On one thread: as many runs go at once."""
    torch.set_num_threads(1)
    images = digits(setting.seed)
    generator = torch.Generator().manual_seed(setting.seed)
    result = train(network(setting, generator), images, setting, epochs, generator)
    return {**setting._asdict(), **asdict(result)}


def network(setting: Setting, generator: torch.Generator) -> nn.Sequential:
    """Convolutions of 3 x 3 with ReLU, one of which halves the sides; the mean over the pixels; linear.

    The usual weights: normal, of variance 2 / inputs of a neuron (He et al., 2015), in the last layer
    1 / inputs.
    """
    parts: list[nn.Module] = []
    inputs, half = 1, setting.layers // 2
    for layer in range(setting.layers):
        outputs = WIDTH if layer < half else 2 * WIDTH
        conv = nn.Conv2d(inputs, outputs, 3, 2 if layer == half else 1, 1, bias=not setting.batch_norm)
        begin(conv, setting.scale * math.sqrt(2 / (9 * inputs)), generator)
        norm = bnfold.nn.BatchNorm2d(outputs, activation="relu") if setting.batch_norm else nn.ReLU()
        parts += [conv, norm]
        inputs = outputs
    linear = nn.Linear(inputs, CLASSES)
    begin(linear, setting.scale * math.sqrt(1 / inputs), generator)
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)


def begin(layer: nn.Conv2d | nn.Linear, std: float, generator: torch.Generator) -> None:
    nn.init.normal_(layer.weight, 0, std, generator=generator)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def batches(count: int, generator: torch.Generator) -> Iterator[Tensor]:
    """One epoch in an order of its own; what is left over after whole batches is not used."""
    yield from torch.randperm(count, generator=generator)[: count // BATCH * BATCH].split(BATCH)


def train(
    net: nn.Sequential, images: Images, setting: Setting, epochs: int, generator: torch.Generator
) -> Result:
    """Stochastic gradient descent with momentum and a constant rate."""
    optimizer = torch.optim.SGD(net.parameters(), setting.learning_rate, momentum=MOMENTUM)
    epoch = len(images.train) // BATCH
    losses: list[float] = []
    steps = None
    for _ in range(epochs):
        for chosen in batches(len(images.train), generator):
            loss = nn.functional.cross_entropy(net(images.train[chosen]), images.train_labels[chosen])
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                return failed(steps)
            if steps is None and len(losses) >= epoch and mean(losses[-epoch:]) <= TARGET:
                steps = len(losses)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    last = mean(losses[-epoch:])
    net.eval()
    with torch.no_grad():
        if not net(images.train).isfinite().all():
            return failed(steps)
    fit = accuracy(net, images.train, images.train_labels)
    seen = accuracy(net, images.test, images.test_labels)
    recalibrated = seen
    if setting.batch_norm:
        bnfold.nn.recalibrate(net, [images.train])
        recalibrated = accuracy(net, images.test, images.test_labels)
    ending = "learned" if last < LEARNED * GUESSING else "stuck"
    return Result(ending, steps, round(last, 5), fit, seen, recalibrated)


def failed(steps: int | None) -> Result:
    """Of a network that gives no numbers any more."""
    guess = 1 / CLASSES
    return Result("nan", steps, None, guess, guess, guess)


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


@torch.no_grad()
def accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    return round(float((net(images).argmax(1) == labels).double().mean()), 5)
