"""What a test draws depends on no other test."""

from __future__ import annotations

import numpy as np
import pytest

from tests.onnx_graph import reading


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    """The generator of reading.py starts anew."""
    reading.RNG.bit_generator.state = np.random.default_rng(1).bit_generator.state
