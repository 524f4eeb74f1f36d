"""What branch merging leaves and gains, beside timm's own reparameterization. Started by tools/bench_merge.

Four of timm's networks in training form, every batch norm randomized, each in a process of its own.
bench/results/merge.json keeps the latest of each, with its machine and versions.
"""

from __future__ import annotations

import argparse
from typing import Any

from rich.table import Table

from tools._bench.merge_speed import RUNTIMES, VARIANTS
from tools._common import RESULTS, ROOT, console, measured, origin, read, table, write
from tools._peers.peers import PACKAGES

STORED = RESULTS / "merge.json"
NETWORKS = ("repvgg_a0", "mobileone_s0", "fastvit_t8", "repvit_m0_9")
PREPARING = 600.0  # seconds beside those of measuring


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="bench_merge")
    parser.add_argument("--models", nargs="+", choices=NETWORKS, default=NETWORKS, metavar="MODEL",
                        help=f"only these of {', '.join(NETWORKS)}")  # fmt: skip
    parser.add_argument("--seconds", type=float, default=40.0, help="of measuring each in each runtime (40)")
    arguments = parser.parse_args()
    terminal, known = console(130), read(STORED)
    most = len(RUNTIMES) * arguments.seconds + PREPARING
    for name in arguments.models:
        with terminal.status(name):
            found = measured("tools._bench.merge_speed", name, arguments.seconds, most)
        known[name] = {**origin(*PACKAGES), **found}
        write(STORED, {name: known[name] for name in NETWORKS if name in known})
    for runtime in RUNTIMES:
        terminal.print(view(runtime, {name: known[name][runtime] for name in arguments.models}))
    terminal.print(f"Stored in {STORED.relative_to(ROOT)}.")


def view(runtime: str, networks: dict[str, Any]) -> Table:
    headings = ("network", "variant", "linear", "batch norms", "error", "median", "quartiles", "faster")
    made = table(f"One image in {runtime}, one thread: milliseconds", headings, headings[:2])
    for name, found in networks.items():
        base = found["variants"]["as it is"]["median"]
        for variant in VARIANTS:
            row = found["variants"][variant]
            made.add_row(
                name,
                variant,
                str(row["linear"]),
                str(row["batch_norms"]),
                f"{row['error']:.1e}",
                f"{row['median']:.2f}",
                f"{row['quartile_1']:.2f} - {row['quartile_3']:.2f}",
                f"{base / row['median']:.2f}x",
            )
        made.add_section()
    return made


if __name__ == "__main__":
    main()
