"""The same networks with and without batch norm, over learning rates and initial weights.

Started by tools/claims. Asks what is commonly said of batch norm: that training goes faster, depends less on
the initial weights, fails less often, and generalizes better. Every run is in the results, those that failed
too.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import multiprocessing
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import _claims_plot
import _claims_run
import _claims_summary
import _claims_table
import _images
import _peers
from _claims_run import Setting
from rich.console import Console
from rich.table import Table

import bnfold
from bnfold.progress import progress

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results" / "claims.json"
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
    results, plot = (folder / "claims.json", folder / "claims.png") if folder else (RESULTS, PLOT)
    begin = time.perf_counter()
    try:
        known = json.loads(results.read_text()) if arguments.redraw else measured(arguments.quick)
    except OSError as error:
        sys.exit(f"claims: cannot read {results}: {error.strerror}")
    except KeyboardInterrupt:
        sys.exit(130)
    known["summary"] = _claims_summary.summary(known["runs"])
    for path in (results, plot):
        path.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(text(known))
    _claims_plot.draw(known, plot)
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(table(known))
    seconds = time.perf_counter() - begin
    shown = [path.relative_to(ROOT) if path.is_relative_to(ROOT) else path for path in (results, plot)]
    console.print(
        f"{len(known['runs'])} runs; {seconds:.0f} s. Stored in {shown[0]} and {shown[1]}.", soft_wrap=True
    )


def measured(quick: bool) -> dict[str, Any]:
    """All runs, with what they have in common, and where they were made."""
    rates, scales, seeds, epochs = LEARNING_RATES, SCALES, SEEDS, EPOCHS
    if quick:
        rates, scales, seeds, epochs = (0.3, 3.0), (1.0, 4.0), 2, 2
    settings = [
        Setting(layers, batch_norm, rate, scale, seed)
        for layers in LAYERS
        for batch_norm in (False, True)
        for rate in rates
        for scale in scales
        for seed in range(seeds)
    ]
    runs = all_runs(settings, epochs)
    return {**origin(), "protocol": protocol(rates, scales, seeds, epochs), "summary": {}, "runs": runs}


def all_runs(settings: list[Setting], epochs: int) -> list[dict[str, Any]]:
    """In the order of the settings. The longest go first, one process for each core, one thread in each."""
    order = sorted(range(len(settings)), key=lambda at: settings[at][:2], reverse=True)
    work = partial(_claims_run.run, epochs=epochs)
    done: dict[int, dict[str, Any]] = {}
    cores = len(os.sched_getaffinity(0))
    with multiprocessing.get_context("spawn").Pool(cores) as pool, progress("runs") as advance:
        for at, result in zip(order, pool.imap(work, [settings[at] for at in order]), strict=True):
            done[at] = result
            advance(len(done), len(settings))
    return [done[at] for at in sorted(done)]


def origin() -> dict[str, Any]:
    packages = ("numpy", "torch", "scikit-learn", "matplotlib")
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {
        "machine": _peers.machine(),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "versions": {"bnfold": bnfold.__version__, "python": sys.version.split()[0], **versions},
    }


def protocol(rates: tuple[float, ...], scales: tuple[float, ...], seeds: int, epochs: int) -> dict[str, Any]:
    """What all runs have in common."""
    images = _images.digits(0)
    return {
        "images": {"name": images.name, "train": len(images.train), "test": len(images.test)},
        "layers": LAYERS,
        "learning_rates": rates,
        "scales": scales,
        "seeds": seeds,
        "steps": epochs * (len(images.train) // _claims_run.BATCH),
        "batch": _claims_run.BATCH,
        "momentum": _claims_run.MOMENTUM,
        "target": _claims_run.TARGET,
        "good": _claims_summary.GOOD,
        "fit": _claims_summary.FIT,
    }


def text(known: dict[str, Any]) -> str:
    """JSON with one run a line."""
    marked = json.dumps({**known, "runs": []}, indent=1)
    runs = ",\n  ".join(json.dumps(run) for run in known["runs"])
    return marked.replace('"runs": []', f'"runs": [\n  {runs}\n ]') + "\n"


def table(known: dict[str, Any]) -> Table:
    view = Table(title="Without and with batch norm", title_justify="left")
    view.add_column("")
    for heading in _claims_table.columns(known["summary"]):
        view.add_column(heading, justify="right")
    for name, cells in _claims_table.rows(known["summary"], known["protocol"]).items():
        view.add_row(name, *cells)
    return view


if __name__ == "__main__":
    main()
