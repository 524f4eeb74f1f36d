"""A sweep over the networks of the zoo: each in a process of its own, with a result file of its own.

What is measured is stored at once, so that an interrupted sweep goes on where it stopped.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import datetime
import json
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _models
import _peers
import numpy as np
from _zoo_names import NAMES
from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent

TIMEOUT = 1800.0  # seconds of one network
EXACT = 1e-5  # an error above it is compared with the unfolded model's own, against float64


@dataclass(frozen=True)
class Sweep:
    """Which file measures a network (FILE --one NAME OPTIONS), where results go, and one of them in words."""

    file: str
    results: Path
    story: Callable[[dict[str, Any]], str]

    def path(self, name: str) -> Path:
        return self.results / f"{name}.json"

    def known(self, name: str) -> dict[str, Any]:
        """What is stored of a network; {} if nothing is."""
        path = self.path(name)
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return found

    def store(self, name: str, result: dict[str, Any]) -> None:
        self.results.mkdir(parents=True, exist_ok=True)
        self.path(name).write_text(json.dumps(result, indent=1) + "\n")

    def all(self, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The results of those networks that have one."""
        return {name: found for name in names if (found := self.known(name))}

    def run(self, names: Sequence[str], options: list[str], jobs: int, console: Console) -> None:
        """Measure these networks, so many at a time, and say what came of each."""
        os.environ["PYTHONPATH"] = str(ROOT)
        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            running = {pool.submit(self._process, name, options): name for name in names}
            for index, future in enumerate(concurrent.futures.as_completed(running), 1):
                console.print(f"{index}/{len(names)} {running[future]}: {future.result()}")

    def _process(self, name: str, options: list[str]) -> str:
        begin = time.perf_counter()
        _, failure = _peers.run([sys.executable, self.file, "--one", name, *options], TIMEOUT)
        took = f"{time.perf_counter() - begin:.0f} s"
        if failure:
            return f"failed after {took}: {failure}"
        return f"{took}, {self.story(self.known(name))}"


def parser(description: str | None, prog: str) -> argparse.ArgumentParser:
    """What every sweep can be asked."""
    found = argparse.ArgumentParser(description=description, prog=prog)
    found.add_argument("names", nargs="*", metavar="NAME", help="only these networks of timm (default: all)")
    found.add_argument("--again", action="store_true", help="also where there is a result already")
    found.add_argument("--jobs", type=int, default=1, help="networks at a time (default 1)")
    found.add_argument("--one", help=argparse.SUPPRESS)
    return found


def chosen(found: argparse.ArgumentParser, names: Sequence[str]) -> Sequence[str]:
    """The networks that were asked for; ends with a message if one is unknown."""
    if unknown := sorted(set(names) - set(NAMES)):
        valid = ", ".join(NAMES)
        found.error(f"unknown network {', '.join(unknown)}. Note: valid choices are {valid}")
    return names or NAMES


def origin() -> dict[str, Any]:
    """When, where and with what a result was measured."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "machine": _peers.machine(),
        "versions": _peers.versions("torch", "timm"),
    }


def plain(reason: str) -> str:
    """A reason without the names and numbers of one graph, so that equal ones can be counted."""
    return re.sub(r"\[[\d, ]*\]|\b\d+\b", "N", re.sub(r"(backward|forward), [^:]+:", r"\1:", reason))


def difference(got: list[np.ndarray[Any, Any]], want: list[np.ndarray[Any, Any]]) -> float:
    """max |got - want| / max |want|, over all outputs."""
    return max(float(np.abs(g - w).max() / np.abs(w).max()) for g, w in zip(got, want, strict=True))


def in_float64(name: str, x: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    """The outputs of a network by torch in double precision."""
    import torch

    model, _ = _models.network(name)
    with torch.no_grad():
        outputs = model.double()(torch.from_numpy(x).double())
    return arrays(outputs)


def arrays(outputs: Any) -> list[np.ndarray[Any, Any]]:
    """What a network gives, one tensor or several, as arrays."""
    return [y.detach().numpy() for y in (outputs if isinstance(outputs, (tuple, list)) else [outputs])]
