"""Real images with labels: scikit-learn's digits, and Fashion-MNIST from the files of Debian's package.

Pixels are float32, [N, 1, height, width], shifted and scaled to mean 0 and variance 1 over the training
images.
"""

from __future__ import annotations

import functools
import gzip
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bnfold.errors import UsageError

NAMES = ("digits", "fashion-mnist")
CLASSES = 10
PART = 256  # images at a time, where nothing is trained
FASHION = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist
LARGEST = 100_000_000  # bytes of one unpacked file; the largest of the four has 47 million
UNSIGNED_BYTES = 8  # the type of an idx file's entries

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True)
class Images:
    """Images and labels (0..9) to train with, and others to test with."""

    name: str
    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor

    def accuracy(self, answers: Tensor) -> float:
        """The share of the test images with the right answer."""
        return float((answers.argmax(1) == self.test_labels).double().mean())

    def first(self, train: int, test: int) -> Images:
        """At most that many of each."""
        rest = self.test[:test], self.test_labels[:test]
        return Images(self.name, self.train[:train], self.train_labels[:train], *rest)


@torch.no_grad()
def outputs(module: torch.nn.Module, images: Tensor) -> Tensor:
    """Of a module, for so many images at a time."""
    return torch.cat([module(part) for part in images.split(PART)])


def load(name: str, seed: int, folder: Path = FASHION) -> Images:
    """One of NAMES. `seed` draws the split of the digits; Fashion-MNIST comes with its own."""
    return digits(seed) if name == "digits" else fashion(folder)


def digits(seed: int) -> Images:
    """1797 handwritten digits of 8 x 8 pixels, a third of them to test with."""
    bunch = all_digits()
    order = np.random.default_rng(seed).permutation(len(bunch.target))
    pixels, labels = bunch.images[order], bunch.target[order]
    test = len(labels) // 3
    return standardized("digits", pixels[test:], labels[test:], pixels[:test], labels[:test])


@functools.cache
def all_digits() -> Any:
    """Read once: it is a compressed table of text."""
    from sklearn.datasets import load_digits

    return load_digits()


def fashion(folder: Path) -> Images:
    """70,000 pictures of clothes of 28 x 28 pixels, 10,000 of them to test with."""
    parts = []
    for part in ("train", "t10k"):
        images, labels = folder / f"{part}-images-idx3-ubyte.gz", folder / f"{part}-labels-idx1-ubyte.gz"
        pixels, answers = idx(images, 3), idx(labels, 1)
        if len(pixels) != len(answers) or not pixels.size:
            raise UsageError(f"{images}: {len(pixels)} images of {pixels.shape[1:]}, {len(answers)} labels")
        if answers.max() >= CLASSES:
            raise UsageError(f"{labels}: a label of {answers.max()}; there are {CLASSES} classes, from 0")
        parts += [pixels, answers]
    if parts[0].shape[1:] != parts[2].shape[1:]:
        raise UsageError(f"{folder}: the images to train with and to test with differ in size")
    return standardized("fashion-mnist", *parts)


def idx(path: Path, rank: int) -> Bytes:
    """A gzipped idx file of unsigned bytes: two zeros, the type, the rank, each extent, the entries.

    Raises:
        UsageError: it cannot be read, is no such file, is too large, or is longer or shorter than it says.
    """
    head = 4 + 4 * rank
    try:
        with gzip.open(path) as file:
            start = file.read(head)
            if len(start) < head or start[:4] != bytes([0, 0, UNSIGNED_BYTES, rank]):
                raise UsageError(f"{path} is no idx file of unsigned bytes with {rank} dimensions")
            shape = [int.from_bytes(start[at : at + 4], "big") for at in range(4, head, 4)]
            size = math.prod(shape)
            if size > LARGEST:
                raise UsageError(f"{path} says it holds {size} bytes; the most that is read is {LARGEST}")
            data = file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        said = getattr(error, "strerror", None) or error
        if isinstance(error, FileNotFoundError):
            said = f"{said}. Debian's package dataset-fashion-mnist brings it"
        raise UsageError(f"cannot read {path}: {said}") from error
    if len(data) != size:
        raise UsageError(f"{path} is damaged: it does not hold the {size} bytes that it says")
    return np.frombuffer(data, np.uint8).reshape(shape)


def standardized(name: str, pixels: Any, labels: Any, test: Any, test_labels: Any) -> Images:
    """Mean 0 and variance 1 over the training images."""
    wide = np.asarray(pixels, np.float64)
    mean, std = wide.mean(), wide.std()
    if std == 0:
        raise UsageError(f"{name}: all pixels of the images to train with are equal")
    train, rest = (
        torch.from_numpy(((np.asarray(x) - mean) / std).astype(np.float32))[:, None] for x in (pixels, test)
    )
    answers, others = (torch.from_numpy(np.asarray(x, np.int64)) for x in (labels, test_labels))
    return Images(name, train, answers, rest, others)
