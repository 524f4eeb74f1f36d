"""tools/bench_equalize: its measures, its pictures, and what it has stored."""

from __future__ import annotations

import importlib
import json
from types import ModuleType

import numpy as np
import pytest

from tools._common import RESULTS


@pytest.fixture
def bench() -> ModuleType:
    pytest.importorskip("skimage", reason="the photographs are scikit-image's")
    pytest.importorskip("torch", reason="the trained networks are torch's")
    return importlib.import_module("tools._bench.equalize")


def test_measures(bench: ModuleType) -> None:
    exact = np.array([[3.0, 4.0], [0.0, 0.0]])
    assert bench.measured(exact, exact) == {"same": 1.0, "error": 0.0}
    assert bench.measured(exact, np.array([[3.0, 4.0], [0.0, 1.0]])) == {"same": 0.5, "error": 0.2}


def test_no_photograph_is_on_both_sides(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{number}" for number in range(7)]
    monkeypatch.setattr(bench, "PHOTOGRAPHS", " ".join(names))
    monkeypatch.setattr(bench, "photograph", lambda name: np.full((240, 230, 3), float(name)))
    monkeypatch.setattr(bench, "imagenet", lambda image: image)
    for part in (0, *bench.PARTS):
        sides = bench.squares(part)
        seen = [{round(float(image.mean())) for image in side} for side in sides]
        assert seen[0] | seen[1] == set(range(7))
        assert not seen[0] & seen[1]
        assert len(sides[0]) == bench.CALIBRATION * len(seen[0])


def test_what_is_stored_shows_what_is_claimed() -> None:
    """One scale for a whole weight: closer to float32 with balanced ranges, in answers and in outputs."""
    networks = json.loads((RESULTS / "equalize.json").read_text())["networks"]
    ways = networks["MobileNetV2, ImageNet"]["ways"]
    before, after = (ways[way]["per_tensor"] for way in ("as it is", "equalized, Clips split"))
    assert after["same"] > before["same"]
    assert after["error"] < before["error"]
    for network in networks.values():
        for found in network["ways"].values():
            assert found["float32"]["same"] == 1
            assert found["float32"]["error"] < 1e-6
