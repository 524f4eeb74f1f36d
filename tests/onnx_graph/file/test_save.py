"""Where a model may be saved, and what is left there if that fails."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from bnfold.errors import BnfoldError, UsageError
from bnfold.onnx_graph.file.loaded import load
from bnfold.onnx_graph.file.save import save
from tests.onnx_graph.file.test_loaded import initializer, message, saved
from tests.onnx_graph.samples import chain


def test_only_force_replaces_a_file(tmp_path: Path) -> None:
    path, other = saved(chain(), tmp_path / "in.onnx"), saved(chain(1), tmp_path / "other.onnx")
    before = other.read_bytes()
    loaded = load(path)
    for target in (path, other):
        with pytest.raises(UsageError) as error:
            save(loaded, target)
        message(error, target, "force=True")
    assert other.read_bytes() == before
    os.chmod(other, 0o640)
    save(loaded, other, force=True)
    assert other.read_bytes() == path.read_bytes()
    assert other.stat().st_mode & 0o777 == 0o640
    loaded.set_array(initializer(loaded, "w0"), np.zeros(3))
    save(loaded, path, force=True)
    assert onnx.load(path) == loaded.to_proto()
    # What it was loaded from is still mapped.
    again = load(other)
    for name in ("w1", "w2"):
        array = loaded.array(initializer(loaded, name))
        np.testing.assert_array_equal(array, again.array(initializer(again, name)))
    assert sorted(os.listdir(tmp_path)) == ["in.onnx", "other.onnx"]


def test_places_where_no_file_can_be(tmp_path: Path) -> None:
    loaded = load(chain(1))
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for target, part in (
        ("none/out.onnx", "no folder"),
        ("folder", "is a folder"),
        ("pipe", "not a regular file"),
        ("x" * 300, "cannot be written"),
        ("nul\0.onnx", "cannot be written"),
        ("bad\udcff.onnx", "UTF-8"),
    ):
        with pytest.raises(UsageError) as error:
            save(loaded, tmp_path / target, force=True)
        message(error, part)
    assert sorted(os.listdir(tmp_path)) == ["folder", "pipe"]


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
@pytest.mark.parametrize("reason", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_what_fails_leaves_nothing(
    external: bool, step: str, reason: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load(chain())
    old = saved(chain(1), tmp_path / "out.onnx").read_bytes()
    done = getattr(os, step)
    for survived in range(4):  # steps
        left = [survived]

        def failing(*arguments: Any, left: list[int] = left) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise reason
            return done(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(os, step, failing)
            try:
                save(loaded, tmp_path / "out.onnx", force=True, external=external)
                break
            except KeyboardInterrupt:
                text = ""
            except BnfoldError as error:
                text = str(error)
        if isinstance(reason, OSError):
            assert text.startswith(f"{tmp_path / 'out.onnx'}")
            assert text.endswith(": cannot be written: No space left on device")
        if step != "fsync" or survived <= external:  # the last one comes when all is done
            assert (tmp_path / "out.onnx").read_bytes() == old
            assert os.listdir(tmp_path) == ["out.onnx"]
    assert survived
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".part")]
