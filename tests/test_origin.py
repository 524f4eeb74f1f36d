"""Advice on what to install works from where the package came from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from bnfold import origin

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def anew() -> Iterator[None]:
    origin._source.cache_clear()
    yield
    origin._source.cache_clear()


def test_from_a_checkout(anew: None) -> None:
    assert origin.extra("torch") == f"pip install '{ROOT}[torch]'"


@pytest.mark.parametrize(
    ("said", "line"),
    [
        (None, "pip install 'bnfold[torch]'"),
        ({"url": "file:///gone/bnfold-0.2.0-py3-none-any.whl"}, "pip install 'bnfold[torch]'"),
        ({"url": "file://WHEEL"}, "pip install 'WHEEL[torch]'"),
        (
            {"url": "https://host/bnfold.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
            "pip install 'bnfold[torch] @ git+https://host/bnfold.git@abc'",
        ),
    ],
)
def test_installed(
    anew: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: dict[str, Any] | None, line: str
) -> None:
    wheel = tmp_path / "a wheel.whl"
    wheel.write_bytes(b"")

    class Installed:
        def read_text(self, name: str) -> str | None:
            found = (
                None
                if said is None
                else json.dumps(said).replace("WHEEL", wheel.as_posix().replace(" ", "%20"))
            )
            return found if name == "direct_url.json" else None

    monkeypatch.setattr(origin, "__file__", str(tmp_path / "site-packages" / "bnfold" / "origin.py"))
    monkeypatch.setattr(metadata, "distribution", lambda name: Installed())
    assert origin.extra("torch") == line.replace("WHEEL", str(wheel))
