"""What all tests of files share."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def _no_flushing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy disk would make these tests wait, for nothing that they could see."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
