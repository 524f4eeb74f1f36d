"""Which TensorRT is found, and what is said where none is."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

from bnfold.errors import UsageError
from bnfold.tensorrt import flavours

NAMES = [flavour.module for flavour in flavours.FLAVOURS]


def installed(monkeypatch: pytest.MonkeyPatch, *names: str, attribute: str = "get_plugin_registry") -> None:
    """As if these were, and no others."""
    for name in NAMES:
        module = ModuleType(name)
        setattr(module, attribute, lambda: None)
        monkeypatch.setitem(sys.modules, name, module if name in names else None)


def test_the_first_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert NAMES == ["tensorrt", "tensorrt_rtx", "tensorrt_lean_bindings"]
    installed(monkeypatch, *NAMES)
    assert flavours.find(build=True).__name__ == "tensorrt"
    installed(monkeypatch, *NAMES[1:])
    assert flavours.find(build=True).__name__ == flavours.find(build=False).__name__ == "tensorrt_rtx"
    installed(monkeypatch, NAMES[2])
    assert flavours.find(build=False).__name__ == "tensorrt_lean_bindings"
    with pytest.raises(
        UsageError, match=r"^no TensorRT is found \(looked for tensorrt, tensorrt_rtx\): .*rtx$"
    ):
        flavours.find(build=True)


def test_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch)
    with pytest.raises(UsageError) as caught:
        flavours.find(build=False)
    assert str(caught.value) == (
        "no TensorRT is found (looked for tensorrt, tensorrt_rtx, tensorrt_lean_bindings): pip install "
        "tensorrt, or pip install tensorrt-rtx, or pip install --no-deps tensorrt-lean-cu13-libs "
        "tensorrt-lean-cu13-bindings"
    )


def test_one_that_does_not_load_is_told_where_no_other_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, "tensorrt_rtx")
    monkeypatch.delitem(sys.modules, "tensorrt")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "tensorrt.py").write_text("raise OSError('libnvinfer.so.11: cannot open\\nin many places')\n")
    importlib.invalidate_caches()
    assert flavours.find(build=False).__name__ == "tensorrt_rtx"
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(UsageError) as caught:
        flavours.find(build=True)
    assert str(caught.value).splitlines()[1:] == [
        "tensorrt is installed, but does not load: libnvinfer.so.11: cannot open"
    ]


def test_a_folder_of_that_name_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, "tensorrt", attribute="something")
    with pytest.raises(UsageError, match="no TensorRT is found"):
        flavours.find(build=True)
