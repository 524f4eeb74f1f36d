"""torch's tracing without its remarks on its own future, and on packages that are not there."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["quiet"]


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing of that is for the user of this package: what goes wrong comes as an exception."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    with warnings.catch_warnings():
        for kind in (FutureWarning, DeprecationWarning):
            warnings.simplefilter("ignore", kind)
        log.setLevel(logging.ERROR)
        try:
            yield
        finally:
            log.setLevel(level)
