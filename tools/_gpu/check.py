"""All tests and measurements that need an NVIDIA GPU, in the time that there is. Started by tools/gpu_check.

First the kernels are compiled, in several processes; then the tests run; then tools/bench_kernels, from the
most important measurements on. Each part is a process of its own, and its result, or its error, is in the
file as soon as it is known. Run it again to go on: what was measured on this device, with these kernels and
versions, is kept.
"""

from __future__ import annotations

import argparse
import subprocess
import time
from pathlib import Path

from tools._common import ROOT, command
from tools._gpu import tests as gpu_tests
from tools._gpu.results import Results, opened

LOG = ROOT / ".cache" / "gpu_check" / "tests.log"
PARTS = ("kernels", "tests", "bench")
FOR_TESTS = 0.4  # of the time, at most
LEAST = 20.0  # seconds that are worth beginning a part
BROKEN = 3  # of bench_kernels: to be started again
ATTEMPTS = 4


def parsed(argv: list[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """The command line; what is not known is for bench_kernels."""
    parser = argparse.ArgumentParser(
        prog="gpu_check", description=__doc__, epilog="Other options are those of tools/bench_kernels."
    )
    parser.add_argument("--seconds", type=float, default=540.0, help="all parts together (default 540)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="only these")
    parser.add_argument("--output", type=Path, help="the file (default: by the device, in bench/results)")
    parser.add_argument("--again", action="store_true", help="forget what is measured already")
    return parser.parse_known_args(argv)


def main() -> int:
    arguments, others = parsed()
    end = time.monotonic() + arguments.seconds
    results = opened("gpu_check", arguments.output, arguments.again)
    results.save()
    origin = results.origin
    print(f"{origin['device']['name']}, driver {origin['driver']}, torch {origin['versions']['torch']}")
    try:
        for part in arguments.parts:
            left = end - time.monotonic()
            results = results.renewed()
            if left < LEAST:
                results.failed(part, "not begun: no time was left")
                continue
            print(f"== {part}, {left:.0f} s left", flush=True)
            try:
                if part == "bench":
                    bench(results.path, left, others)
                else:
                    {"kernels": kernels, "tests": tests}[part](results, left)
                results.renewed().worked(part)
            except Exception as error:  # of any kind: the other parts are still wanted
                results.renewed().failed(part, error)
                print(f"{part}: {type(error).__name__}: {error}")
    except KeyboardInterrupt:
        print("Interrupted.")
        return 130
    finally:
        print(f"Stored in {results.path}.")
    data = results.renewed().data
    failed = [case for case in data.get("cases", {}).values() if case["failure"]]
    passed = data.get("tests", {}).get("outcome", "passed") == "passed"
    return int(bool(data["errors"] or failed or not passed))


def kernels(results: Results, left: float) -> None:
    """Every kernel compiled; without one, torch would be measured against itself."""
    from bnfold.kernels.device import cuda_device
    from tools._gpu.compile import compile_all, instances

    device = cuda_device(0)
    wanted = instances(device.limits)
    results.data["limits"] = {**vars(device.limits), "capability": list(device.limits.capability)}
    found = results.data["compiled"] = compile_all(wanted, device.arch, left / 3)
    results.save()
    good = found["done"] - len(found["failures"])
    print(f"{good} of {found['instances']} kernels compiled in {found['seconds']} s")
    if found["failures"]:
        raise RuntimeError(f"{len(found['failures'])} kernels: {next(iter(found['failures'].values()))}")


def tests(results: Results, left: float) -> None:
    """The tests' outcome; what failed is printed."""
    found = results.data["tests"] = gpu_tests.run(LOG, FOR_TESTS * left)
    results.save()
    counts = ", ".join(f"{found[end]} {end}" for end in ("passed", "failed", "skipped"))
    print(f"{found['outcome']}: {counts} in {found['seconds']} s; {LOG.relative_to(ROOT)}")
    for name, why in found["failures"].items():
        print(f"  {name}: {why}"[:300])


def bench(path: Path, left: float, others: list[str]) -> None:
    """The measurements; where a kernel broke the device, a new process goes on with the next."""
    end = time.monotonic() + left
    for _ in range(ATTEMPTS):
        seconds = end - time.monotonic()
        if seconds < LEAST:
            return
        wanted = ["--output", path, "--seconds", f"{seconds - 10:.0f}", *others]
        process = subprocess.Popen(command("tools._gpu.kernels", *wanted), cwd=ROOT)
        try:
            status = process.wait(seconds + 15)
        except BaseException as error:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
            if isinstance(error, subprocess.TimeoutExpired):
                raise RuntimeError("a measurement did not end") from error
            raise
        if status not in (0, 1, BROKEN):
            raise RuntimeError(f"bench_kernels ended with status {status}")
        if status != BROKEN:
            return
    raise RuntimeError(f"the device broke {ATTEMPTS} times")


if __name__ == "__main__":
    raise SystemExit(main())
