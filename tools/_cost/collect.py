"""Counts the kernels of a checkout, which may be an older one: what its launch table picks, and what that
executes.

As a program, `python -m tools._cost.collect FOLDER ARCH...` prints JSON. It is a process of its own, for it
imports the package `bnfold` of that checkout; the tools are those of this one.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools._cost import latency, loops, sass
from tools._cost.devices import DEVICES, limits

if TYPE_CHECKING:
    from tools._gpu.layers import Case

KERNELS = {"forward": "forward", "backward": "backward", "eval": "apply"}  # of a pass
# Of a launch, what the model asks.
FIELDS = ("row", "grid", "cluster", "cooperative", "ranks", "group", "window", "units", "shared")


def checkout(root: Path, commit: str | None) -> Path:
    """The folder of a commit's package, kept in .cache; or this checkout."""
    if commit is None:
        return root
    asked = ["git", "-C", str(root), "rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"git knows no commit {commit}")
    folder = root / ".cache" / "kernel_cost" / done.stdout.strip()
    folder.mkdir(parents=True, exist_ok=True)
    archive = subprocess.run(
        ["git", "-C", str(root), "archive", commit, "bnfold"], capture_output=True, check=True
    )
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return folder


def place(case: Case) -> str:
    """A case without what follows it, on which no launch depends."""
    return case.key.rpartition(" ")[0]


def collected(root: Path, devices: list[str]) -> dict[str, Any]:
    """Launches and counts: `bnfold` is imported from that folder."""
    sys.path.insert(0, str(root))
    compile_ = importlib.import_module("bnfold.kernels.compile")
    launch_ = importlib.import_module("bnfold.kernels.launch")
    sys.path.remove(str(root))
    from tools._gpu.compile import problem
    from tools._gpu.layers import cases

    instances: dict[tuple[str, str, str], int] = {}
    rows: dict[str, int] = {}
    launches: dict[str, dict[str, dict[str, list[Any]]]] = {}
    alike: dict[str, str] = {}
    for name in devices:
        hardware = DEVICES[name]
        limit = limits(hardware, launch_.Device)
        same = next((other for other, text in alike.items() if text == repr(limit)), None)
        alike[name] = repr(limit)
        if same is not None:
            launches[name] = launches[same]
            continue
        made = launches.setdefault(name, {})
        for case in cases(fusions=["alone"]):
            for which, kernel in KERNELS.items():
                launch = launch_.plan(problem(case, kernel), limit)
                instance = instances.setdefault((hardware.arch, launch.source, launch.kernel), len(instances))
                row = rows.setdefault(launch.row, len(rows))
                values = [getattr(launch, field) for field in FIELDS[1:]]
                made.setdefault(place(case), {})[which] = [instance, row, *map(int, values)]
    counts = []
    for n, (arch, source, kernel) in enumerate(instances):
        print(f"{n + 1} of {len(instances)}: {kernel} for {arch}", file=sys.stderr)
        counts.append(
            {"arch": arch, "kernel": kernel, **counted(compile_.compiled(source, kernel, arch), kernel)}
        )
    return {
        "sources": sources(root),
        "constants": constants(root),
        "fields": ["instance", *FIELDS],
        "rows": list(rows),
        "instances": counts,
        "launches": {name: each for name, each in launches.items() if name == _first(launches, each)},
        "alike": {name: _first(launches, each) for name, each in launches.items()},
    }


def _first(launches: dict[str, Any], each: Any) -> str:
    return next(name for name, other in launches.items() if other is each)


def counted(compiled: Any, kernel: str) -> dict[str, Any]:
    """What one instance executes."""
    code = sass.disassembled(compiled.cubin, compiled.log)
    about = loops.named(kernel)
    found = loops.costs(code.instructions, about)
    known = loops.roles(code.instructions, about)
    between = latency.between(code.instructions, known)
    shown = {
        role: {
            fusion: count.shown()
            for fusion, count in each.items()
            if fusion == "alone" or count != each["alone"]
        }
        for role, each in found.items()
    }
    ring = "write" if about.exchange == "long_ring" else "ring"
    rings = [code.instructions[each.loop.first : each.loop.last + 1] for each in known if each.role == ring]
    turns = [
        sum(each.name == "LDGSTS" for each in ring) // about.read for ring in rings
    ]  # vectors of a thread
    return {
        **({"turn": min(turns)} if turns else {}),
        "registers": code.registers,
        "spilled": code.spilled,
        "splits": latency.splits(code.instructions, known),
        "prefetches": any(each.name == "CCTL" and "PF2" in each.qualifiers for each in code.instructions),
        "loops": shown,
        "between": between.shown(),
    }


def sources(root: Path) -> str:
    """A hash of the kernels."""
    digest = hashlib.sha256()
    for path in sorted((root / "bnfold" / "kernels").glob("*.cuh")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def constants(root: Path) -> dict[str, int]:
    """The numbers that the kernels' sources name: how a ring is divided, and how far ahead it asks."""
    text = "\n".join(path.read_text() for path in sorted((root / "bnfold" / "kernels").glob("*.cuh")))
    return {name: int(value) for name, value in re.findall(r"constexpr int (k\w+) = (\d+);", text)}


def main() -> None:
    folder, *devices = sys.argv[1:]
    json.dump(collected(Path(folder), devices), sys.stdout)


if __name__ == "__main__":
    main()
