"""Proofs of what bnfold makes of timm's networks, and of what its peers make. Started by tools/prove.

Each network is exported twice, as in tools/zoo (torch's raw graph, and what its exporter makes of it by
default, batch norms randomized), folded with a certificate, and the fold proved in a process of its own. With
--peers, some networks' raw exports with their constants computed (batch norms as they were) are given to the
peers instead, and two small models that tools are known to fold wrongly (tools/_data/traps.py), and the
results proved without any hint. With --against, the proof of each fold and the check of an older checkout of
bnfold (`bnfold verify`, as before there were proofs) are run in turn, as commands. One network is one process
and one file in bench/results/prove/: an interrupted sweep goes on where it stopped. bench/results/prove.json
sums them up.
"""

from __future__ import annotations

import collections
import os
import resource
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.table import Table

from tools._common import ROOT, origin, run, table
from tools._data import traps
from tools._data.models import fold_constants
from tools._peers import peers, proof
from tools._zoo.names import NAMES
from tools._zoo.onnx_zoo import CACHE, KINDS, TOOL_TIMEOUT, exports
from tools._zoo.sweep import Results, Sweep

# Those whose raw exports the peers get, and the peers.
NETWORKS = (
    *("resnet50", "levit_128s", "mixnet_s", "repvgg_a0", "densenet121", "efficientnet_b0"),
    *("mobilenetv3_small_100", "regnety_002", "inception_next_atto", "fastvit_t8"),
)
PEERS = ("onnxsim", "onnxslim", "onnxoptimizer_all", "onnxscript", "onnxruntime", "onnxruntime_extended")
PROOF_TIMEOUT = 300.0  # seconds of one proof
STATUSES = ("proved", "refuted", "undecided")


def main() -> None:
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed bnfold is compiled once
    parser = SWEEP.parser(__doc__)
    parser.add_argument("--peers", action="store_true", help="what the peers make, and not what bnfold makes")
    parser.add_argument("--drop", action="store_true", help="delete each network's exports when it is done")
    parser.add_argument("--against", type=Path, metavar="DIR", help="time another checkout's check as well")
    arguments = SWEEP.parsed(parser)
    part = "peers" if arguments.peers else "against" if arguments.against else "folds"
    if arguments.one:
        one(arguments.one, part, arguments.drop, arguments.against)
        return
    options = [f"--{key}" for key in ("peers", "drop") if getattr(arguments, key)]
    options += ["--against", str(arguments.against.resolve())] if arguments.against else []

    def wanted(name: str) -> bool:
        asked = name in (*NETWORKS, *traps.TRAPS) if arguments.peers else name in NAMES
        return asked and (arguments.again or part not in SWEEP.known(name))

    SWEEP.run(arguments, wanted, options)


def one(name: str, part: str, drop: bool, checkout: Path | None = None) -> None:
    """Proves what was made of one network, and stores the result."""
    paths = {"": for_peers(name)} if part == "peers" else exports(name)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        if part == "peers":
            found = {tool: peer(tool, paths[""], Path(folder) / f"{tool}.onnx") for tool in PEERS}
        elif checkout is not None:
            found = {kind: beside(paths[kind], Path(folder), checkout) for kind in KINDS}
        else:
            found = {kind: own(paths[kind], Path(folder)) for kind in KINDS}
    result = {**SWEEP.known(name), part: {**origin(*peers.PACKAGES), "proofs": found}}
    SWEEP.store(name, result)
    if drop:
        for used in paths.values():
            used.unlink()


def for_peers(name: str) -> Path:
    """A convolution's bias that is computed from nothing, as torch exports it, keeps peers from folding."""
    path = CACHE / f"{name}.peers.onnx"
    if not path.exists() and name in NAMES:
        fold_constants(exports(name)["raw"], path)
    elif not path.exists():
        traps.write(name, path)
    return path


def own(source: Path, folder: Path) -> dict[str, Any]:
    """A fold, proved with its certificate."""
    target, certificate, failure = folded(source, folder)
    if failure:
        return {"failure": failure}
    return proved(source, target, certificate) | {"certificate_bytes": certificate.stat().st_size}


def folded(source: Path, folder: Path) -> tuple[Path, Path, str]:
    """The file of a fold, that of its certificate, and what failed."""
    target, certificate = folder / "folded.onnx", folder / "folded.npz"
    program = [sys.executable, "-m", "bnfold", "fold", source, target, "--certificate", certificate]
    _, failure = run([*map(str, program), "--no-verify", "--force"], PROOF_TIMEOUT)
    return target, certificate, failure


def beside(source: Path, folder: Path, checkout: Path) -> dict[str, Any]:
    """CPU seconds of the proof of a fold and of another checkout's check of it: of the whole commands."""
    target, certificate, failure = folded(source, folder)
    if failure:
        return {"failure": failure}
    prove = ["prove", str(source), str(target), "--certificate", str(certificate)]
    return {
        "proof": command_seconds(ROOT, prove),
        "check": command_seconds(checkout, ["verify", str(source), str(target)]),
    }


def command_seconds(checkout: Path, arguments: list[str]) -> dict[str, Any]:
    """Of a command of the bnfold in a checkout, its processes together, and what stopped it."""
    start = resource.getrusage(resource.RUSAGE_CHILDREN)
    program = ["env", f"PYTHONPATH={checkout}", sys.executable, "-P", "-m", "bnfold", *arguments]
    _, failure = run(program, PROOF_TIMEOUT)
    end = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime
    return {"cpu_seconds": round(seconds, 3), "failure": failure}


def peer(tool: str, source: Path, target: Path) -> dict[str, Any]:
    """What a peer makes of a file, proved without a certificate."""
    outcome = peers.measure(tool, source, target, 1, TOOL_TIMEOUT)
    return {"failure": outcome.failure} if outcome.failure else proved(source, target, None)


def proved(source: Path, target: Path, certificate: Path | None) -> dict[str, Any]:
    """Status, claims by what decided them, ulps, CPU seconds, bytes of memory, and why it is not proved."""
    try:
        found = proof.measure(source, target, certificate, PROOF_TIMEOUT)
    except proof.Failed as error:
        return {"failure": str(error)}
    told = found["proof"]
    return {
        **{key: told[key] for key in ("status", "claims", "ulps", "refusal", "begins", "ran")},
        "dropped": len(told["dropped"]),
        **{key: found[key] for key in ("cpu_seconds", "seconds", "before", "most")},
    }


def story(found: dict[str, Any]) -> str:
    """All proofs of a network in a few words."""
    parts = ("folds", "peers", "against")
    told = [(name, one) for part in parts for name, one in proofs(found, part).items()]
    return ", ".join(f"{name} {cell(one)}" for name, one in told)


def proofs(found: dict[str, Any], part: str) -> dict[str, dict[str, Any]]:
    """By export or peer."""
    of_part: dict[str, dict[str, Any]] = found.get(part, {}).get("proofs", {})
    return of_part


def cell(one: dict[str, Any] | None) -> str:
    """The status and CPU seconds, or what failed."""
    if one is None:
        return "-"
    if "check" in one:
        return f"{one['proof']['cpu_seconds']:.1f} against {one['check']['cpu_seconds']:.1f}"
    return "fails" if "failure" in one else f"{one['status']} {one['cpu_seconds']:.1f}"


def summary(results: Results) -> dict[str, Any]:
    """How often each status came out, seconds and memory, traps not counted; and each model's rows."""
    totals: dict[str, Any] = {}
    rows: dict[str, Any] = {name: {} for name in results}
    for part, columns in (("folds", KINDS), ("peers", PEERS)):
        totals[part] = {}
        for column in columns:
            found = {name: one for name in results if (one := proofs(results[name], part).get(column))}
            for name, one in found.items():
                rows[name].setdefault(part, {})[column] = short(one)
            if networks := [one for name, one in found.items() if name in NAMES]:
                totals[part][column] = total(networks)
    return {"totals": totals, "against": medians(results), "networks": rows}


def medians(results: Results) -> dict[str, Any]:
    """Of the commands that were run in turn: how many, the median CPU seconds, and those that failed."""
    pairs = [one for found in results.values() for one in proofs(found, "against").values() if "proof" in one]
    told: dict[str, Any] = {"folds": len(pairs)}
    for what in ("proof", "check") if pairs else ():
        seconds = sorted(one[what]["cpu_seconds"] for one in pairs)
        failures = sum(bool(one[what]["failure"]) for one in pairs)
        told[what] = {"median": round(statistics.median(seconds), 2), "max": seconds[-1], "failed": failures}
    return told


def short(one: dict[str, Any]) -> dict[str, Any]:
    """Of one proof: how it ended, how long it took, and the node where the models begin to differ."""
    found: dict[str, Any] = {key: one[key] for key in ("status", "failure", "cpu_seconds") if key in one}
    if one.get("refusal"):
        first = one["begins"] or one["refusal"]
        found |= {"node": first["node"], "reason": first["reason"]}
    return found


def total(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Of several proofs."""
    counts = collections.Counter(one.get("status", "fails") for one in found)
    told = [one for one in found if "failure" not in one]
    seconds = sorted(one["cpu_seconds"] for one in told)
    return {
        **{status: counts[status] for status in (*STATUSES, "fails")},
        "cpu_seconds": {
            "min": min(seconds, default=None),
            "median": round(statistics.median(seconds), 3) if seconds else None,
            "max": max(seconds, default=None),
        },
        "ulps": max((one["ulps"] for one in told), default=None),
        "most_bytes": max((one["most"] - one["before"] for one in told), default=None),
    }


def view(results: Results) -> Table:
    """Status and CPU seconds of every proof."""
    columns = [("folds", kind) for kind in KINDS] + [("peers", tool) for tool in PEERS]
    headings = [name.removesuffix("_all") for _, name in columns]
    made = table("proofs: status and CPU seconds", ("network", *headings), left=["network"])
    for name, result in results.items():
        made.add_row(name, *(cell(proofs(result, part).get(column)) for part, column in columns))
    return made


SWEEP = Sweep("prove", "tools._zoo.prove_zoo", story, view, summary, (*NAMES, *traps.TRAPS))

if __name__ == "__main__":
    main()
