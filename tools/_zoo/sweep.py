"""A sweep over the networks of the zoo: each in a process of its own, with a result file of its own.

What is measured is stored at once, so that an interrupted sweep goes on where it stopped.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tools._common import RESULTS, ROOT, command, console, read, run, write
from tools._data import models
from tools._zoo.names import NAMES

if TYPE_CHECKING:
    from rich.table import Table

TIMEOUT = 1800.0  # seconds of one network
EXACT = 1e-5  # an error above it is compared with the unfolded model's own, against float64
Results = dict[str, dict[str, Any]]  # by network


@dataclass(frozen=True)
class Sweep:
    """tool: its name, and that of the results. module: measures a network (MODULE --one NAME OPTIONS).

    story, table, summary: one result in words, several as a table, and all of them in numbers. names: of the
    networks that it knows.
    """

    tool: str
    module: str
    story: Callable[[dict[str, Any]], str]
    table: Callable[[Results], Table]
    summary: Callable[[Results], dict[str, Any]]
    names: Sequence[str] = NAMES

    @property
    def results(self) -> Path:
        return RESULTS / self.tool

    def path(self, name: str) -> Path:
        return self.results / f"{name}.json"

    def known(self, name: str) -> dict[str, Any]:
        """What is stored of a network; {} if nothing is."""
        return read(self.path(name))

    def store(self, name: str, result: dict[str, Any]) -> None:
        write(self.path(name), result)

    def all(self, names: Sequence[str]) -> Results:
        """The results of those networks that have one."""
        return {name: found for name in names if (found := self.known(name))}

    def parser(self, description: str | None) -> argparse.ArgumentParser:
        """What every sweep can be asked."""
        found = argparse.ArgumentParser(description=description, prog=self.tool)
        add = found.add_argument
        add("names", nargs="*", metavar="NAME", help="only these networks (default: all)")
        add("--again", action="store_true", help="also where there is a result already")
        add("--jobs", type=int, default=1, help="networks at a time (default 1)")
        add("--one", help=argparse.SUPPRESS)
        return found

    def parsed(self, parser: argparse.ArgumentParser) -> argparse.Namespace:
        """The command line; ends with a message if a network is unknown."""
        arguments = parser.parse_args()
        if unknown := sorted(set(arguments.names) - set(self.names)):
            valid = ", ".join(self.names)
            parser.error(f"unknown network {', '.join(unknown)}. Note: valid choices are {valid}")
        arguments.names = arguments.names or self.names
        return arguments

    def run(
        self, arguments: argparse.Namespace, wanted: Callable[[str], bool], options: Sequence[str]
    ) -> None:
        """Measure those networks that are wanted, say what came of each, and sum all up."""
        names, terminal = [name for name in arguments.names if wanted(name)], console(140)
        with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
            running = {pool.submit(self._process, name, options): name for name in names}
            for index, future in enumerate(concurrent.futures.as_completed(running), 1):
                terminal.print(f"{index}/{len(names)} {running[future]}: {future.result()}")
        terminal.print(self.table(self.all(arguments.names)))
        total = self.results.with_suffix(".json")
        write(total, self.summary(self.all(self.names)))
        terminal.print(f"Stored in {self.results.relative_to(ROOT)}/ and {total.relative_to(ROOT)}.")

    def _process(self, name: str, options: Sequence[str]) -> str:
        begin = time.perf_counter()
        _, failure = run(command(self.module, "--one", name, *options), TIMEOUT)
        took = f"{time.perf_counter() - begin:.0f} s"
        if failure:
            return f"failed after {took}: {failure}"
        return f"{took}, {self.story(self.known(name))}"


def plain(reason: str) -> str:
    """A reason without the names and numbers of one graph, so that equal ones can be counted."""
    return re.sub(r"\[[\d, ]*\]|\b\d+\b", "N", re.sub(r"(backward|forward), [^:]+:", r"\1:", reason))


def difference(got: list[np.ndarray[Any, Any]], want: list[np.ndarray[Any, Any]]) -> float:
    """max |got - want| / max |want|, over all outputs."""
    return max(float(np.abs(g - w).max() / np.abs(w).max()) for g, w in zip(got, want, strict=True))


def in_float64(name: str, x: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    """The outputs of a network by torch in double precision."""
    import torch

    model, _ = models.network(name)
    with torch.no_grad():
        outputs = model.double()(torch.from_numpy(x).double())
    return arrays(outputs)


def arrays(outputs: Any) -> list[np.ndarray[Any, Any]]:
    """What a network gives, one tensor or several, as arrays."""
    return [y.detach().numpy() for y in (outputs if isinstance(outputs, (tuple, list)) else [outputs])]
