"""What branch merging leaves and gains, beside timm's own reparameterization. Started by tools/bench_merge.

Four of timm's networks in training form, every batch norm randomized, each in a process of its own.
bench/results/merge.json keeps the latest of each, with its machine and versions.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from pathlib import Path
from typing import Any

import _peers
from _merge_speed import RUNTIMES, VARIANTS
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results" / "merge.json"
NETWORKS = ("repvgg_a0", "mobileone_s0", "fastvit_t8", "repvit_m0_9")
PREPARING = 600.0  # seconds beside those of measuring


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="bench_merge")
    parser.add_argument("--models", nargs="+", choices=NETWORKS, default=NETWORKS, metavar="MODEL",
                        help=f"only these of {', '.join(NETWORKS)}")  # fmt: skip
    parser.add_argument("--seconds", type=float, default=40.0, help="of measuring each in each runtime (40)")
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 130)
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in arguments.models:
        with console.status(name):
            known[name] = {**origin(), **bench(name, arguments.seconds)}
        ordered = {name: known[name] for name in NETWORKS if name in known}
        RESULTS.write_text(json.dumps(ordered, indent=1) + "\n")
    for runtime in RUNTIMES:
        console.print(table(runtime, {name: known[name][runtime] for name in arguments.models}))
    console.print(f"Stored in {RESULTS.relative_to(ROOT)}.")


def origin() -> dict[str, Any]:
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    return {"machine": _peers.machine(), "date": today, "versions": _peers.versions("torch", "timm")}


def bench(name: str, seconds: float) -> dict[str, Any]:
    """One network, in a process of its own."""
    program = Path(__file__).with_name("_merge_speed.py")
    command = [sys.executable, str(program), name, "--seconds", str(seconds)]
    lines, failure = _peers.run(command, len(RUNTIMES) * seconds + PREPARING)
    if failure:
        raise RuntimeError(f"{name}: {failure}")
    return lines[0]


def table(runtime: str, networks: dict[str, Any]) -> Table:
    view = Table(title=f"One image in {runtime}, one thread: milliseconds", title_justify="left")
    for heading in ("network", "variant", "linear", "batch norms", "error", "median", "quartiles", "faster"):
        view.add_column(heading, justify="left" if heading in ("network", "variant") else "right")
    for name, found in networks.items():
        base = found["variants"]["as it is"]["median"]
        for variant in VARIANTS:
            row = found["variants"][variant]
            view.add_row(
                name,
                variant,
                str(row["linear"]),
                str(row["batch_norms"]),
                f"{row['error']:.1e}",
                f"{row['median']:.2f}",
                f"{row['quartile_1']:.2f} - {row['quartile_3']:.2f}",
                f"{base / row['median']:.2f}x",
            )
        view.add_section()
    return view


if __name__ == "__main__":
    main()
