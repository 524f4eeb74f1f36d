"""A small network is trained with batch norm on real images, and deployed without it.

Started by tools/train_demo. Trained with bnfold.nn, recalibrated over all training images, folded, exported
to ONNX with the check, run in onnxruntime. What is printed is measured in this very run; the same seed,
machine and versions give the same numbers, but for the seconds.
"""

from __future__ import annotations

import argparse
import platform
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
import torch
from torch import Tensor, nn

import bnfold
import bnfold.nn
from bnfold.progress import progress
from tools._common import ROOT, ending, session, shown
from tools._data.images import CLASSES, FASHION, NAMES, PART, Images, load, outputs

EPOCHS = {"digits": 30, "fashion-mnist": 2}
WIDTH = 16  # channels; the residual block has twice as many
BATCH = 64
LEARNING_RATE, MOMENTUM, DECAY = 0.1, 0.9, 5e-4
EXAMPLES = 64  # test images that the checks run on

T = TypeVar("T")


class Block(nn.Module):
    """Two convolutions, and a connection that skips them: the second batch norm adds it before its ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = bnfold.nn.BatchNorm2d(channels, activation="relu")
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = bnfold.nn.BatchNorm2d(channels, activation="relu")

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(self.conv1(x))
        result: Tensor = self.norm2(self.conv2(y), residual=x)
        return result


class Net(nn.Module):
    """Two convolutions, the second of which halves height and width, a residual block, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, WIDTH, 3, padding=1, bias=False)
        self.norm1 = bnfold.nn.BatchNorm2d(WIDTH, activation="relu")
        self.conv2 = nn.Conv2d(WIDTH, 2 * WIDTH, 3, stride=2, padding=1, bias=False)
        self.norm2 = bnfold.nn.BatchNorm2d(2 * WIDTH, activation="relu")
        self.block = Block(2 * WIDTH)
        self.linear = nn.Linear(2 * WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.conv1(x))
        x = self.block(self.norm2(self.conv2(x)))
        result: Tensor = self.linear(x.mean((2, 3)))
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="train_demo")
    add = parser.add_argument
    add("--data", choices=NAMES, default="digits", help="the images (default: digits)")
    add("--data-folder", type=Path, default=FASHION, metavar="FOLDER",
        help=f"where Fashion-MNIST's four .gz files are (default: {FASHION})")  # fmt: skip
    add("--seed", type=int, default=0, help="of the split, the weights and the order (default: 0)")
    add("--epochs", type=int, help="default: 30 for digits, 2 for fashion-mnist")
    add("--quick", action="store_true", help="two epochs of at most 1024 images")
    add("--out", type=Path, default=ROOT / ".cache" / "train_demo" / "net.onnx", metavar="FILE",
        help="the ONNX file, written anew each time (default: .cache/train_demo/net.onnx)")  # fmt: skip
    arguments = parser.parse_args()
    epochs = 2 if arguments.quick else EPOCHS[arguments.data]
    epochs = epochs if arguments.epochs is None else arguments.epochs
    if epochs < 1:
        parser.error("--epochs: at least 1")
    warnings.filterwarnings("ignore")  # that parts of torch are deprecated is no news here
    torch.set_num_threads(1)  # the network is small: more would wait for each other, and round differently
    with ending("train_demo"):
        images = load(arguments.data, arguments.seed, arguments.data_folder)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        run(images.first(1024, 512) if arguments.quick else images, arguments.seed, epochs, arguments.out)


def run(images: Images, seed: int, epochs: int, path: Path) -> None:
    begin = time.perf_counter()
    machine = f"{platform.machine()}, one thread, torch {torch.__version__}"
    print(f"a network with batch norm on {images.name}: trained, folded, exported ({machine})")
    print(f"{len(images.train)} images to train with, {len(images.test)} others to test with, seed {seed}\n")

    print(f"{'step':32}{'test accuracy':>14}{'batch norms':>13}{'seconds':>9}")
    net, seconds = timed(lambda: trained(images, seed, epochs))
    row(f"trained, {epochs} epochs", images.accuracy(outputs(net, images.test)), batch_norms(net), seconds)

    loader = images.train.split(PART)
    _, seconds = timed(lambda: bnfold.nn.recalibrate(net, loader))
    before = outputs(net, images.test)
    row("recalibrated", images.accuracy(before), batch_norms(net), seconds)

    examples = images.test[:EXAMPLES]
    (folded, report), seconds = timed(lambda: bnfold.fold_module(net, examples))
    after = outputs(folded, images.test)
    row("folded in torch", images.accuracy(after), batch_norms(folded), seconds)

    batch = torch.export.Dim("batch")
    exported, seconds = timed(
        lambda: bnfold.export(net, examples, path, dynamic_shapes=({0: batch},), force=True)
    )
    deployed = in_onnxruntime(path, images.test)
    left = sum(node.op_type == "BatchNormalization" for node in onnx.load(path).graph.node)
    row("exported, in onnxruntime", images.accuracy(deployed), left, seconds)

    print(f"\n{'against the recalibrated network':34}{'check':>7}{'largest error':>15}{'other answers':>15}")
    for name, done, output in (("folded in torch", report, after), ("exported", exported, deployed)):
        different = int((output.argmax(1) != before.argmax(1)).sum())
        assert done.verification is not None
        status = done.verification.status
        print(f"{name:34}{status:>7}{worst(done):15.1e}{f'{different} of {len(output)}':>15}")
    print(f"\n{time.perf_counter() - begin:.1f} seconds in all. {shown(path)} has no batch norm left."
          if not left else f"\n{left} batch norms are left in {shown(path)}.")  # fmt: skip


def row(step: str, share: float, norms: int, seconds: float) -> None:
    print(f"{step:32}{100 * share:12.2f} %{norms:13d}{seconds:9.2f}", flush=True)


def timed(work: Callable[[], T]) -> tuple[T, float]:
    begin = time.perf_counter()
    return work(), time.perf_counter() - begin


def trained(images: Images, seed: int, epochs: int) -> Net:
    """Stochastic gradient descent with momentum, its rate falling to 0 along a cosine. Given in eval mode."""
    torch.manual_seed(seed)
    net = Net()
    steps = epochs * (len(images.train) // BATCH)
    optimizer = torch.optim.SGD(
        net.parameters(), LEARNING_RATE, momentum=MOMENTUM, weight_decay=DECAY, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with progress("training") as advance:
        for epoch in range(epochs):
            order = torch.randperm(len(images.train))
            for chosen in order[: len(order) // BATCH * BATCH].split(BATCH):
                loss = nn.functional.cross_entropy(net(images.train[chosen]), images.train_labels[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                advance(schedule.last_epoch, steps, f"epoch {epoch + 1}, loss {loss.item():.3f}")
    return net.eval().requires_grad_(False)


def batch_norms(module: nn.Module) -> int:
    """Of any kind, torch's and bnfold's."""
    return sum(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules())


def in_onnxruntime(path: Path, images: Tensor) -> Tensor:
    """As the file is used: with onnxruntime's optimizer."""
    found = session(path)
    [x] = found.get_inputs()
    parts: list[np.ndarray[Any, Any]] = [
        found.run(None, {x.name: part.numpy()})[0] for part in images.split(PART)
    ]
    return torch.from_numpy(np.concatenate(parts))


def worst(report: Any) -> float:
    """The largest difference that the check found, relative to the largest value of its output."""
    return max(float(output.max_rel) for output in report.verification.outputs)


if __name__ == "__main__":
    main()
