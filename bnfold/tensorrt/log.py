"""What TensorRT says while it works: it tells its errors and the layers of an engine nowhere else."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

__all__ = ["Log", "recording"]

ERROR, WARNING = 1, 2  # trt.ILogger.Severity; 0 is an internal error, 3 information, 4 verbose

NOISE = "already exists, the output tensors of this new instance will not be queryable"


class Log(list[tuple[int, str]]):
    """Severity and text of each message, in order."""

    @property
    def errors(self) -> list[str]:
        return [text for severity, text in self if severity <= ERROR]

    @property
    def warnings(self) -> list[str]:
        """Each once, but for those that every second call of a function brings about."""
        found = dict.fromkeys(text for severity, text in self if severity == WARNING)
        return [" ".join(text.split()) for text in found if NOISE not in text]


@contextmanager
def recording(trt: ModuleType) -> Iterator[tuple[Any, Log]]:
    """A logger to give to TensorRT, and what it hears until the block ends."""
    logger = _logger(trt)
    before, log = logger.log_to, Log()
    logger.log_to = log
    try:
        yield logger, log
    finally:
        logger.log_to = before


@functools.cache
def _logger(trt: ModuleType) -> Any:
    """One for the whole process: TensorRT holds on to the first that it gets, and warns of a second."""

    class Logger(trt.ILogger):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.log_to: Log | None = None

        def log(self, severity: Any, text: str) -> None:
            if self.log_to is not None:
                self.log_to.append((int(severity), text))

    return Logger()
