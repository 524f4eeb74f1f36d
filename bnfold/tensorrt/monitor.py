"""How far a build is, and whether the user wants to stop it."""

from __future__ import annotations

import functools
import signal
import threading
from types import ModuleType
from typing import Any

from bnfold.progress import Advance

__all__ = ["BuildMonitor"]


class BuildMonitor:
    """Reports a build's progress, and stops it at Ctrl-C.

    Python's own answer to Ctrl-C is an exception, wherever the program is. Inside a call from TensorRT's C++
    it would be lost, or end the process without a word: so it is noted, and TensorRT is told at its next
    step.
    """

    def __init__(self, trt: ModuleType, advance: Advance | None) -> None:
        self.interface = _interface(trt)(self)  # what TensorRT calls
        self._advance = advance
        # Of each phase: the one around it, steps done, and steps in all.
        self._phases: dict[str, tuple[str | None, int, int]] = {}
        self._percent = 0
        self._stopped = False
        self._before: Any = None

    def __enter__(self) -> BuildMonitor:  # noqa: PYI034 - typing has Self from Python 3.11 on
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._stop)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def check(self) -> None:
        """Raises KeyboardInterrupt if the user wanted to stop."""
        if self._stopped:
            raise KeyboardInterrupt

    def _stop(self, *_: object) -> None:
        self._stopped = True

    # What TensorRT calls, from threads of its own choice. Phases lie in each other, and have names.

    def begin(self, phase: str, parent: str | None, steps: int) -> None:
        self._phases[phase] = parent, 0, max(1, steps)
        self._tell(phase)

    def step(self, phase: str, number: int) -> bool:
        if phase in self._phases:
            parent, _, steps = self._phases[phase]
            self._phases[phase] = parent, number + 1, steps
            self._tell(phase)
        return not self._stopped

    def end(self, phase: str) -> None:
        self._phases.pop(phase, None)

    def _tell(self, phase: str) -> None:
        if self._advance is None:
            return
        share, seen = 0.0, set[str]()
        at: str | None = phase
        while at in self._phases and at not in seen:
            seen.add(at)
            at, done, steps = self._phases[at]
            share = min(1.0, (done + share) / steps)
        self._percent = max(self._percent, int(100 * share))  # phases may overlap; a bar never goes back
        self._advance(self._percent, 100, phase)


@functools.cache
def _interface(trt: ModuleType) -> Any:
    """The class of TensorRT's interface."""

    class ProgressMonitor(trt.IProgressMonitor):  # type: ignore[name-defined,misc]
        def __init__(self, build: BuildMonitor) -> None:
            trt.IProgressMonitor.__init__(self)
            self._build = build

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._build.begin(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return self._build.step(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            self._build.end(phase_name)

    return ProgressMonitor
