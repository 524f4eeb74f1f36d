"""All tests and measurements that need an NVIDIA GPU, in the time that there is. Started by tools/gpu_check.

First a preflight, which ends the run where nothing launches; then the kernels are compiled, in several
processes; then come the measurements that decide (bfloat16, channels last, batch 128), counters of three
kernels, the tests, and the other measurements. Each step has a limit of time, and its result, or its error,
is in the file as soon as it is known. Run it again to go on: what was measured on this device, with these
kernels and versions, is kept. --parts repeats some steps, and gives them all the time.
"""

from __future__ import annotations

import argparse
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from tools._common import ROOT, command, shown
from tools._gpu import steps as table
from tools._gpu import tests as gpu_tests
from tools._gpu.results import Results, opened

LOGS = ROOT / ".cache" / "gpu_check"  # of each step, as it goes
PARTS = ("preflight", "kernels", "bench", "counters", "tests")
SECONDS = 320.0
LEAST = 10.0  # seconds that are worth beginning a step
BROKEN = 3  # of bench_kernels: to be started again
ATTEMPTS = 4


class NoStart(Exception):
    """A step failed without which no other makes sense."""


def parsed(argv: list[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """The command line; what is not known is for bench_kernels."""
    parser = argparse.ArgumentParser(
        prog="gpu_check", description=__doc__, epilog="Other options are those of tools/bench_kernels."
    )
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help=f"all steps together (default {SECONDS:.0f})"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="only these")
    parser.add_argument("--output", type=Path, help="the file (default: by the device, in bench/results)")
    parser.add_argument("--again", action="store_true", help="forget what is measured already")
    parser.add_argument("--list", action="store_true", help="only say what would run, and for how long")
    parser.add_argument(
        "--wheels", type=Path, metavar="DIR", help="only fetch what a machine without a package index needs"
    )
    return parser.parse_known_args(argv)


def main() -> int:
    arguments, others = parsed()
    chosen = table.steps(arguments.parts, others)
    if arguments.list:
        print(table.listed(chosen, arguments.seconds))
        return 0
    if arguments.wheels:
        from tools._gpu import wheels

        return wheels.fetched(arguments.wheels)
    end = time.monotonic() + arguments.seconds
    results = opened("gpu_check", arguments.output, arguments.again)
    results.save()
    origin = results.origin
    print(f"{origin['device']['name']}, driver {origin['driver']}, torch {origin['versions']['torch']}")
    try:
        for number, step in enumerate(chosen):
            perform(step, chosen[number + 1 :], results.renewed(), end, others)
    except NoStart as error:
        print(f"{error}. Nothing else is tried.")
        return 1
    except KeyboardInterrupt:
        print("Interrupted.")
        return 130
    finally:
        print(f"Stored in {results.path}.")
    data = results.renewed().data
    failed = [case for case in data.get("cases", {}).values() if case["failure"]]
    passed = data.get("tests", {}).get("outcome", "passed") == "passed"
    return int(bool(data["errors"] or failed or not passed))


def perform(
    step: table.Step, later: Sequence[table.Step], results: Results, end: float, others: list[str]
) -> None:
    """One step within its limit; its failure is noted."""
    left = end - time.monotonic()
    if left < LEAST:
        results.failed(step.name, "not begun: no time was left")
        return
    seconds, start = table.limit(step, later, left), time.monotonic()
    print(f"== {step.name}, at most {seconds:.0f} s of {left:.0f}", flush=True)
    try:
        _WORK[step.name](results, seconds, others)
        results.renewed().worked(step.name)
    except NoStart as problem:
        results.renewed().failed(step.name, problem)
        raise
    except Exception as problem:  # of any kind: the other steps are still wanted
        results.renewed().failed(step.name, problem)
        print(f"{step.name}: {type(problem).__name__}: {problem}")
    now = results.renewed()
    took = round(time.monotonic() - start, 1)
    now.part("steps")[step.name] = {"seconds": took, "limit": round(seconds, 1), "predicted": step.predicted}
    now.save()


def preflight(results: Results, seconds: float, _: list[str]) -> None:
    """One small case of each way to launch. Where none works, or one does not end, the run ends."""
    results.data.pop("preflight", None)  # of an earlier run
    results.save()
    try:
        status = ended("tools._gpu.preflight", ["--output", results.path], seconds)
    except RuntimeError as error:
        raise NoStart(f"preflight: {error}") from error
    ways = results.renewed().data.get("preflight", {}).get("ways", {})
    wrong = [f"{name}: {each['failure']}" for name, each in ways.items() if each["failure"]]
    if status and len(wrong) in (0, len(ways)):
        raise NoStart(f"preflight: {wrong[0][:500] if wrong else f'it ended with status {status}'}")
    if wrong:
        raise RuntimeError("; ".join(wrong)[:1000])


def kernels(results: Results, seconds: float, _: list[str]) -> None:
    """Every kernel compiled; without one, torch would be measured against itself."""
    from bnfold.kernels.device import cuda_device
    from tools._gpu.compile import compile_all, instances

    device = cuda_device(0)
    wanted = instances(device.limits)
    results.data["limits"] = {**vars(device.limits), "capability": list(device.limits.capability)}
    found = results.data["compiled"] = compile_all(wanted, device.arch, seconds)
    results.save()
    good = found["done"] - len(found["failures"])
    print(f"{good} of {found['instances']} kernels compiled in {found['seconds']} s")
    if found["failures"]:
        raise RuntimeError(f"{len(found['failures'])} kernels: {next(iter(found['failures'].values()))}")


def first(results: Results, seconds: float, _: list[str]) -> None:
    """The measurements that decide."""
    bench(results, seconds, list(table.FIRST))


def bench(results: Results, seconds: float, others: list[str]) -> None:
    """The measurements; where a kernel broke the device, a new process goes on with the next."""
    end = time.monotonic() + seconds
    for _ in range(ATTEMPTS):
        left = end - time.monotonic()
        if left < LEAST:
            return
        # It begins no case in the last seconds, and is stopped a little later.
        begun = ["--output", results.path, "--seconds", f"{max(1.0, left - 5):.0f}", *others]
        status = ended("tools._gpu.kernels", begun, left + 5)
        if status not in (0, 1, BROKEN):
            raise RuntimeError(f"bench_kernels ended with status {status}")
        if status != BROKEN:
            return
    raise RuntimeError(f"the device broke {ATTEMPTS} times")


def counters(results: Results, seconds: float, _: list[str]) -> None:
    """What ncu counts."""
    if status := ended("tools._gpu.counters", ["--output", results.path], seconds):
        raise RuntimeError(f"it ended with status {status}")


def tests(results: Results, seconds: float, _: list[str]) -> None:
    """The tests' outcome; what failed is printed."""
    found = results.data["tests"] = gpu_tests.run(LOGS / "tests.log", seconds)
    results.save()
    counts = ", ".join(f"{found[end]} {end}" for end in ("passed", "failed", "skipped"))
    print(f"{found['outcome']}: {counts} in {found['seconds']} s; {shown(LOGS)}/tests.log")
    for name, why in found["failures"].items():
        print(f"  {name}: {why}"[:300])


_WORK = {
    "preflight": preflight,
    "kernels": kernels,
    "first": first,
    "counters": counters,
    "tests": tests,
    "bench": bench,
}


def ended(module: str, arguments: Sequence[object], seconds: float) -> int:
    """The exit status of a module of the tools, in a process of its own, which is shown and logged.

    Raises:
        RuntimeError: it did not end in that time, and was killed.
    """
    LOGS.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        command(module, *arguments), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    logged = threading.Thread(target=_copy, args=(process, LOGS / f"{module.rpartition('.')[2]}.log"))
    logged.start()
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"it did not end in {seconds:.0f} s") from None
    finally:
        if process.poll() is None:
            process.terminate()  # so that it can store what it has
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        logged.join(5)


def _copy(process: subprocess.Popen[str], log: Path) -> None:
    assert process.stdout is not None
    with log.open("a") as file:
        for line in process.stdout:
            file.write(line)
            file.flush()
            print(line, end="", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
