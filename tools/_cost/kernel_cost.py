"""What the kernels cost, without a GPU: counts of their compiled code, and times by a model."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tools._common import RESULTS, ROOT, command, console, ending, read, shown, table, today, versions
from tools._cost import goals, tables
from tools._cost.assumptions import MODEL
from tools._cost.collect import checkout
from tools._cost.devices import DEVICES
from tools._cost.predict import Snapshot, floor, predicted
from tools._cost.sass import NoDisassembler, disassembler
from tools._gpu.layers import BATCHES, FUSIONS, LAYOUTS, PASSES, TYPES, cases

PACKAGES = ("nvidia-cuda-nvrtc", "cuda-core")
ABOUT = (
    "Counts are of compiled code. Times are a model's: nothing here was measured on a GPU. A snapshot holds "
    "what one state of the kernels launches and executes, so that its times can be computed anew."
)


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="kernel_cost", description=__doc__)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--commit", help="count the kernels of that commit")
    which.add_argument("--sources", type=Path, metavar="FOLDER", help="count those of that checkout")
    which.add_argument(
        "--stored", action="store_true", help="count nothing: times of the counts that are stored"
    )
    parser.add_argument("--name", default="now", help="of the snapshot in the file (%(default)s)")
    parser.add_argument("--output", type=Path, default=RESULTS / "kernel_cost.json", metavar="FILE")
    parser.add_argument(
        "--device", nargs="+", choices=DEVICES, default=["H200"], help="to show (%(default)s)"
    )
    parser.add_argument("--batch", type=int, choices=BATCHES, default=128)
    parser.add_argument("--type", choices=TYPES, default="bfloat16")
    parser.add_argument("--layout", choices=LAYOUTS, default="channels_last")
    parser.add_argument("--behind", choices=FUSIONS, default="alone", help="what follows the batch norm")
    return parser.parse_args(arguments)


def counted(options: argparse.Namespace) -> dict[str, Any]:
    """A snapshot of the kernels that are asked for."""
    folder = checkout((options.sources or ROOT).resolve(), options.commit)
    called = command("tools._cost.collect", folder, *DEVICES)
    environment = {"BNFOLD_CACHE": str(ROOT / ".cache" / "cubins"), **os.environ}
    done = subprocess.run(called, stdout=subprocess.PIPE, check=False, cwd=ROOT, env=environment)
    if done.returncode:
        raise OSError("the kernels could not be counted; the reason is above")
    found: dict[str, Any] = json.loads(done.stdout)
    return {"commit": options.commit or "", "date": today(), "versions": versions(*PACKAGES), **found}


def timed(snapshot: Snapshot) -> dict[str, dict[str, list[float]]]:
    """Microseconds of forward, backward and eval, of each case on each device."""
    return {
        case.key: {
            device: [round(predicted(snapshot, device, case, which), 1) for which in PASSES]
            for device in DEVICES
        }
        for case in cases()
    }


def completed(snapshots: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The file's content: what the model makes of the counts."""
    made = {name: Snapshot(each) for name, each in snapshots.items()}
    return {
        "about": ABOUT,
        "model": asdict(MODEL),
        "devices": {name: asdict(hardware) for name, hardware in DEVICES.items()},
        "goals": {name: goals.decided(each) for name, each in made.items()},
        "sensitivity": {name: goals.sensitivity(each) for name, each in made.items()},
        "snapshots": {name: {**each, "us": timed(made[name])} for name, each in snapshots.items()},
    }


def written(result: dict[str, Any]) -> str:
    """As JSON, with a line for each case, launch and loop."""
    return _lines(result, 0) + "\n"


def _lines(value: Any, depth: int) -> str:
    text = json.dumps(value)
    if not isinstance(value, dict | list) or len(text) < 160 or depth > 5:
        return text
    ends, parts = ("{}", value.items()) if isinstance(value, dict) else ("[]", enumerate(value))
    named = isinstance(value, dict)
    lines = (f"{json.dumps(key) + ': ' if named else ''}{_lines(each, depth + 1)}" for key, each in parts)
    indent = "\n" + " " * (depth + 1)
    return ends[0] + indent + f",{indent}".join(lines) + "\n" + " " * depth + ends[1]


def show(options: argparse.Namespace, result: dict[str, Any]) -> None:
    """The tables for the terminal."""
    terminal = console(150)
    snapshot = Snapshot(result["snapshots"][options.name])
    view = table("Executed for each vector of 16 bytes", tables.COUNTED, tables.COUNTED[:2])
    for row in tables.counted(snapshot, options.type, options.layout, "sm_90"):
        view.add_row(*map(str, row))
    terminal.print(view)
    for device in options.device:
        headings = ["layer", "launch"]
        headings += [f"{which}, {what}" for what in ("us", "of floor") for which in PASSES]
        shape = f"{options.batch} {options.type} {options.layout} {options.behind}"
        title = f"A model, not measured: {device}, {shape}"
        view = table(title, headings, headings[:2])
        wanted = cases([options.batch], [options.type], [options.layout], [options.behind])
        for case in wanted:
            us = result["snapshots"][options.name]["us"][case.key][device]
            parts = [
                f"{floor(device, case, which) / time:.0%}" for which, time in zip(PASSES, us, strict=True)
            ]
            row = snapshot.launch(device, case, "forward")["row"]
            view.add_row(case.layer.name, row, *(f"{time:.1f}" for time in us), *parts)
        terminal.print(view)
    headings = tables.headings(result)
    view = table(
        f"Goals, in the model: {goals.DEVICE}, batch {goals.BATCH}, channels last", headings, headings[:2]
    )
    for row in tables.decided(result):
        view.add_row(*map(str, row))
    terminal.print(view)
    terminal.print(tables.sensitive(result))


def main() -> None:
    options = parsed(sys.argv[1:])
    with ending("kernel_cost"):
        stored = read(options.output).get("snapshots", {})
        if not options.stored:
            try:
                disassembler()
            except NoDisassembler as error:
                raise OSError(error) from error
            stored[options.name] = counted(options)
        if options.name not in stored:
            raise OSError(
                f"{shown(options.output)} has no snapshot {options.name}: count it, without --stored"
            )
        result = completed(stored)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(written(result))
        show(options, result)


if __name__ == "__main__":
    main()
