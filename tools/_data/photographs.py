"""scikit-image's photographs, cropped, scaled and normalized as networks want them."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import skimage.data
import skimage.transform

PHOTOGRAPHS = """
    astronaut chelsea coffee rocket camera coins horse moon brick grass gravel page text cell retina
    hubble_deep_field immunohistochemistry
"""

Array = np.ndarray[Any, Any]


@functools.cache
def photograph(name: str) -> Array:
    """(H, W, 3), from 0 to 1."""
    image = np.asarray(getattr(skimage.data, name)(), np.float64)
    image = image / max(image.max(), 1)
    return np.stack([image] * 3, 2) if image.ndim == 2 else image[..., :3]


def scaled(image: Array, size: tuple[int, int]) -> Array:
    """(1, 3, H, W)."""
    image = skimage.transform.resize(image, size, anti_aliasing=True)
    return np.ascontiguousarray(image.transpose(2, 0, 1)[None], np.float32)


def imagenet(image: Array) -> Array:
    mean, std = np.reshape([0.485, 0.456, 0.406], (3, 1, 1)), np.reshape([0.229, 0.224, 0.225], (3, 1, 1))
    found: Array = ((image - mean) / std).astype(np.float32)
    return found
