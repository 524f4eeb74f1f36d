"""torch's tracing without its warnings of its own future, and of packages that are not installed."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["without_warnings"]


@contextmanager
def without_warnings() -> Iterator[None]:
    """They are not for the user of this package: what goes wrong comes as an exception."""
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
