"""The file of a certificate: what is written is read, and what is damaged is refused."""

from __future__ import annotations

import contextlib
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnfold.certificate import Certificate, Cut, Image, read_certificate
from bnfold.errors import UsageError


def full() -> Certificate:
    rng = np.random.default_rng(0)
    cut = Cut(1, np.array([0, 2]), np.array([np.nan, 0.5, np.nan]))
    images = {
        ("", "a"): Image("b", rng.normal(size=(1, 4, 1, 1)), 0.25, False, None, 1, 2),
        ("", "c"): Image("c", np.inf, rng.normal(size=(3,)), True),
        ("if:0/", "d"): None,
        ("", "e"): Image("e", cut=cut),
    }
    return Certificate(images, {"x": (np.zeros((3, 1)), np.asarray(1.0))}, ("w",), 2, "one", "two")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path, given = tmp_path / "c.npz", full()
    path.write_bytes(given.to_bytes())
    found = read_certificate(path)
    assert (found.frozen, found.rounds, found.original, found.folded) == (("w",), 2, "one", "two")
    assert list(found.images) == list(given.images)
    for key, image in given.images.items():
        other = found.images[key]
        assert (image is None) == (other is None)
        if image is None or other is None:
            continue
        assert (image.name, image.decoded, image.scaled, image.moved) == (
            other.name, other.decoded, other.scaled, other.moved,
        )  # fmt: skip
        np.testing.assert_array_equal(image.p, other.p)
        np.testing.assert_array_equal(image.q, other.q)
        assert (image.cut is None) == (other.cut is None)
        if image.cut is not None and other.cut is not None:
            np.testing.assert_array_equal(image.cut.kept, other.cut.kept)
            np.testing.assert_array_equal(image.cut.constants, other.cut.constants)
    for given_, found_ in zip(given.premises["x"], found.premises["x"], strict=True):
        np.testing.assert_array_equal(given_, found_)


def stated(change: dict[str, Any]) -> bytes:
    """A certificate with another header."""
    with np.load(io.BytesIO(full().to_bytes())) as archive:
        parts = {name: archive[name] for name in archive.files}
    header = json.loads(parts["header"].tobytes()) | change
    file = io.BytesIO()
    parts["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    np.savez(file, **parts)
    return file.getvalue()


def other_archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("../../header.npy", b"x")
    return file.getvalue()


def pickled() -> bytes:
    file = io.BytesIO()
    np.savez(file, header=np.array([{}], object), numbers=np.zeros(0), channels=np.zeros(0, np.int64))
    return file.getvalue()


def bomb() -> bytes:
    """A thousandth of what it says it holds."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("header", "numbers", "channels"):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                for _ in range(400):
                    member.write(bytes(1 << 20))
    return file.getvalue()


ROW = ["", "a", "b", "encode", 1.0, 0.0, None, 0, 0]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: b"hello", "not a certificate of bnfold"),
        (lambda: b"", "not a certificate of bnfold"),
        (lambda: full().to_bytes()[:-40], "not a certificate of bnfold"),
        (other_archive, "it is another archive"),
        (pickled, "not a certificate of bnfold"),
        (bomb, "it holds more than 1024 MiB"),
        (lambda: stated({"version": 2}), "it is of version 2, and version 1 is read here"),
        (lambda: stated({"format": "onnx"}), "its header is another"),
        (lambda: stated({"images": [ROW[:4]]}), "not a certificate of bnfold"),
        (
            lambda: stated({"images": [[*ROW[:4], {"at": 10**6, "shape": [3]}, *ROW[5:]]]}),
            "outside of the file",
        ),
        (
            lambda: stated({"images": [[*ROW[:4], {"at": 0, "shape": [-3]}, *ROW[5:]]]}),
            "an array of shape (-3,)",
        ),
        (lambda: stated({"images": [[*ROW[:3], "both", *ROW[4:]]]}), "in the form 'both'"),
        (lambda: stated({"images": 3}), "the certificate is damaged"),
        (lambda: stated({"rounds": None}), "the certificate is damaged"),
    ],
)
def test_damaged_files_are_refused_in_one_line(tmp_path: Path, make: Callable[[], bytes], said: str) -> None:
    path = tmp_path / "c.npz"
    path.write_bytes(make())
    with pytest.raises(UsageError) as caught:
        read_certificate(path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no such file"):
        read_certificate(tmp_path / "none.npz")
    with pytest.raises(UsageError, match="cannot be read"):
        read_certificate(tmp_path)


@pytest.mark.parametrize("seed", range(60))
def test_damaged_bytes_never_end_otherwise(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    content = bytearray(full().to_bytes())
    for _ in range(rng.integers(1, 6)):
        content[rng.integers(len(content))] = rng.integers(256)
    path = tmp_path / "c.npz"
    path.write_bytes(bytes(content))
    with contextlib.suppress(UsageError):  # which is one line, by the tests above
        read_certificate(path)
