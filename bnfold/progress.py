"""A progress bar for people: on a terminal, and only once the work has taken a second."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress

PATIENCE = 1.0  # seconds of work before a bar is worth drawing


class Advance(Protocol):
    """Called by long work: `done` of `total` steps are behind us, `what` comes next."""

    def __call__(self, done: int, total: int, what: str = "") -> None: ...


@contextmanager
def progress(description: str, quiet: bool = False) -> Iterator[Advance]:
    """Give an `advance(done, total, what)` callback: a bar on stderr if that is a terminal, else nothing."""
    if quiet or not sys.stderr.isatty():
        yield lambda done, total, what="": None
        return

    begin = time.monotonic()
    bar: Progress | None = None

    def advance(done: int, total: int, what: str = "") -> None:
        nonlocal bar
        if bar is None:
            if time.monotonic() - begin < PATIENCE:
                return
            bar = _bar()
            bar.start()
            bar.add_task(description, what="")
        bar.update(bar.task_ids[0], completed=done, total=total, what=what)

    try:
        yield advance
    finally:
        if bar is not None:
            bar.stop()


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    # A node's name is printed as it is: no markup. The bar disappears when the work is done.
    what = TextColumn("{task.fields[what]}", markup=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), what)
    return Progress(*columns, console=Console(stderr=True), transient=True)
