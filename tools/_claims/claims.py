"""The same networks with and without batch norm, over learning rates and initial weights.

Started by tools/claims. Asks what is commonly said of batch norm: that training goes faster, depends less on
the initial weights, fails less often, and generalizes better. Every run is in the results, those that failed
too.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from bnfold.progress import progress
from tools._claims.plot import draw
from tools._claims.run import BATCH, MOMENTUM, TARGET, Setting, run
from tools._claims.summary import FIT, GOOD, summary
from tools._claims.table import columns, rows
from tools._common import RESULTS, ROOT, console, origin, shown, table
from tools._data.images import digits

PACKAGES = ("numpy", "torch", "scikit-learn", "matplotlib")
STORED = RESULTS / "claims.json"
PLOT = ROOT / "docs" / "claims.png"
QUICK = ROOT / ".cache" / "claims"

LAYERS = (3, 8)
LEARNING_RATES: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
SCALES: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)
SEEDS, EPOCHS = 5, 15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="claims")
    parser.add_argument("--quick", action="store_true", help="few short runs; results go to .cache/claims")
    parser.add_argument("--folder", type=Path, help="where claims.json and claims.png go")
    parser.add_argument(
        "--redraw", action="store_true", help="nothing runs: table and plot of what is stored"
    )
    arguments = parser.parse_args()
    folder = arguments.folder or (QUICK if arguments.quick else None)
    results, plot = (folder / "claims.json", folder / "claims.png") if folder else (STORED, PLOT)
    begin = time.perf_counter()
    try:
        known = json.loads(results.read_text()) if arguments.redraw else measured(arguments.quick)
    except OSError as error:
        sys.exit(f"claims: cannot read {results}: {error.strerror}")
    except KeyboardInterrupt:
        sys.exit(130)
    known["summary"] = summary(known["runs"])
    for path in (results, plot):
        path.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(text(known))
    draw(known, plot)
    terminal = console(140)
    terminal.print(view(known))
    seconds = time.perf_counter() - begin
    stored = f"Stored in {shown(results)} and {shown(plot)}."
    terminal.print(f"{len(known['runs'])} runs; {seconds:.0f} s. {stored}", soft_wrap=True)


def measured(quick: bool) -> dict[str, Any]:
    """All runs, with what they have in common, and where they were made."""
    rates, scales, seeds, epochs = LEARNING_RATES, SCALES, SEEDS, EPOCHS
    if quick:
        rates, scales, seeds, epochs = (0.3, 3.0), (1.0, 4.0), 1, 2
    settings = [
        Setting(layers, batch_norm, rate, scale, seed)
        for layers in LAYERS
        for batch_norm in (False, True)
        for rate in rates
        for scale in scales
        for seed in range(seeds)
    ]
    about = {**origin(*PACKAGES), "protocol": protocol(rates, scales, seeds, epochs)}
    return {**about, "summary": {}, "runs": all_runs(settings, epochs)}


def all_runs(settings: list[Setting], epochs: int) -> list[dict[str, Any]]:
    """In the order of the settings. The longest go first, one process for each core, one thread in each."""
    order = sorted(range(len(settings)), key=lambda at: settings[at][:2], reverse=True)
    work = partial(run, epochs=epochs)
    done: dict[int, dict[str, Any]] = {}
    cores = len(os.sched_getaffinity(0))
    with multiprocessing.get_context("spawn").Pool(cores) as pool, progress("runs") as advance:
        for at, result in zip(order, pool.imap(work, [settings[at] for at in order]), strict=True):
            done[at] = result
            advance(len(done), len(settings))
    return [done[at] for at in sorted(done)]


def protocol(rates: tuple[float, ...], scales: tuple[float, ...], seeds: int, epochs: int) -> dict[str, Any]:
    """What all runs have in common."""
    images = digits(0)
    return {
        "images": {"name": images.name, "train": len(images.train), "test": len(images.test)},
        "layers": LAYERS,
        "learning_rates": rates,
        "scales": scales,
        "seeds": seeds,
        "steps": epochs * (len(images.train) // BATCH),
        "batch": BATCH,
        "momentum": MOMENTUM,
        "target": TARGET,
        "good": GOOD,
        "fit": FIT,
    }


def text(known: dict[str, Any]) -> str:
    """JSON with one run a line."""
    marked = json.dumps({**known, "runs": []}, indent=1)
    runs = ",\n  ".join(json.dumps(run) for run in known["runs"])
    return marked.replace('"runs": []', f'"runs": [\n  {runs}\n ]') + "\n"


def view(known: dict[str, Any]) -> Table:
    made = table("Without and with batch norm", ("", *columns(known["summary"])), left=[""])
    for name, cells in rows(known["summary"], known["protocol"]).items():
        made.add_row(name, *cells)
    return made


if __name__ == "__main__":
    main()
