"""tools/train_demo: a network learns real images with batch norm, and answers the same without."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bnfold.errors import UsageError
from tests.tools.conftest import Ran
from tools._data.images import load

pytest.importorskip("sklearn", reason="the digits lie in scikit-learn, of the extra train-demo")


def test_a_network_learns_and_answers_the_same_without_its_batch_norms(ran_here: Ran, tmp_path: Path) -> None:
    target = tmp_path / "net.onnx"
    done = ran_here("_demos.train_demo", "--quick", "--out", target)
    assert (done.returncode, done.stderr) == (0, "")
    assert target.exists()

    rows = re.findall(r"^(\w+).* (\d+\.\d\d) % +(\d+) +\d+\.\d\d$", done.stdout, re.MULTILINE)
    assert [name for name, _, _ in rows] == ["trained", "recalibrated", "folded", "exported"]
    shares = [float(share) for _, share, _ in rows]
    assert min(shares) >= 90
    assert shares[1] == shares[2] == shares[3]
    assert [int(norms) for _, _, norms in rows] == [4, 4, 0, 0]

    checks = re.findall(r"^(\w+).* passed +(\S+e-\d\d) +(\d+) of 512$", done.stdout, re.MULTILINE)
    assert [(name, others) for name, _, others in checks] == [("folded", "0"), ("exported", "0")]
    assert all(float(error) <= 1e-5 for _, error, _ in checks)


@pytest.mark.usefixtures("one_thread")
def test_the_same_seed_trains_the_same_network() -> None:
    from tools._demos import train_demo as demo

    few = load("digits", 3).first(256, 64)
    one, again, other = (demo.trained(few, seed, epochs=1).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(value, again[name]) for name, value in one.items())
    assert not torch.equal(one["conv1.weight"], other["conv1.weight"])


def test_no_digit_is_both_trained_with_and_tested_with() -> None:
    both = [load("digits", seed) for seed in (0, 1)]
    for images in both:
        assert (len(images.train), len(images.test)) == (1198, 599)
        assert images.train.shape[1:] == images.test.shape[1:] == (1, 8, 8)
        assert abs(float(images.train.mean())) < 1e-5
        assert abs(float(images.train.std()) - 1) < 1e-4
    sets = [torch.cat([images.train_labels, images.test_labels]).sort().values for images in both]
    assert torch.equal(*sets)
    assert not torch.equal(both[0].test_labels, both[1].test_labels)


# Fashion-MNIST's files


def idx(array: np.ndarray[Any, Any], rank: int | None = None) -> bytes:
    shape = b"".join(extent.to_bytes(4, "big") for extent in array.shape)
    return bytes([0, 0, 8, array.ndim if rank is None else rank]) + shape + array.astype(np.uint8).tobytes()


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Twelve pictures of 4 x 5 pixels, five of them to test with."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 7), ("t10k", 5)):
        pixels, labels = rng.integers(0, 256, (count, 4, 5)), np.arange(count)
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pixels)))
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    return tmp_path


def test_idx_files_are_read(files: Path) -> None:
    images = load("fashion-mnist", 0, files)
    pixels = np.random.default_rng(0).integers(0, 256, (7, 4, 5))
    expected = ((pixels - pixels.mean()) / pixels.std()).astype(np.float32)
    np.testing.assert_array_equal(images.train[:, 0].numpy(), expected)
    assert images.test.shape == (5, 1, 4, 5)
    assert images.test_labels.tolist() == [0, 1, 2, 3, 4]


LABELS = idx(np.arange(7))
HUGE = LABELS[:4] + (2**31).to_bytes(4, "big")


DAMAGED = {
    "short": (gzip.compress(LABELS[:-1]), "damaged"),
    "long": (gzip.compress(LABELS + b"0"), "damaged"),
    "huge": (gzip.compress(HUGE), "the most that is read is"),
    "no extent": (gzip.compress(LABELS[:6]), "no idx file"),
    "another rank": (gzip.compress(idx(np.arange(7), rank=2)), "no idx file"),
    "another type": (gzip.compress(b"\0\0\x0d" + LABELS[3:]), "no idx file"),
    "fewer labels": (gzip.compress(idx(np.arange(6))), "7 images of .*6 labels"),
    "a class too many": (gzip.compress(idx(np.arange(4, 11))), "a label of 10"),
    "cut off": (gzip.compress(LABELS)[:-10], "cannot read"),
    "not compressed": (LABELS, "cannot read"),
    "missing": (None, "cannot read .*Debian's package dataset-fashion-mnist"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_files_that_are_none_end_in_one_line(files: Path, name: str) -> None:
    data, says = DAMAGED[name]
    path = files / "train-labels-idx1-ubyte.gz"
    path.unlink()
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(UsageError, match=says) as raised:
        load("fashion-mnist", 0, files)
    assert "\n" not in str(raised.value)


def test_missing_files_end_the_tool_with_status_2(ran_here: Ran, tmp_path: Path) -> None:
    done = ran_here("_demos.train_demo", "--data", "fashion-mnist", "--data-folder", tmp_path)
    assert done.returncode == 2
    assert re.fullmatch(r"train_demo: cannot read .*\n", done.stderr)
