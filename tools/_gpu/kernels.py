"""Every distinct batch norm of ResNet-50 on a GPU, beside torch: time, bandwidth, memory, bnfold's errors.

Started by tools/bench_kernels and by tools/gpu_check. What is measured, and how: bench/README.md. A run goes
on where an earlier one on the same device, with the same kernels and versions, stopped.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tools._gpu import goals
from tools._gpu import results as stored
from tools._gpu.layers import BATCHES, FUSIONS, LAYERS, LAYOUTS, PASSES, TYPES, Case, Task, cases, tasks
from tools._gpu.results import Results, clocks, opened

SHORT = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "channels_last": "NHWC", "NCHW": "NCHW"}
BROKEN = 3  # exit status: the device must be opened anew, by another process
INTERRUPTED = 130
MOST = 60.0  # seconds of one case: what takes longer waits for something that never comes
WHO = {False: ("native", "failure"), True: ("compile", "compile_failure")}  # last of a task, and its failure
COMPILING = 40.0  # seconds that must be left to begin one
MEMORY = Case(LAYERS[1], 128, "bfloat16", "channels_last", "add_relu")
HEADING = (
    "layer        batch type layout behind   "
    + "".join(f"{which + ', us':>12}{'copy':>6}{'torch':>8}" for which in PASSES)
    + "   error, row of forward"
)


class Stopwatch(Protocol):
    """As timing.Timer."""

    def us(self, prepare: Callable[[], Callable[[], object]], expected: float) -> dict[str, float]: ...


def parsed(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench_kernels", description=__doc__)
    names = [layer.name for layer in LAYERS]

    def choice(name: str, kind: Any, valid: Any, what: str) -> None:
        text = f"only {what}: {', '.join(map(str, valid))}"
        parser.add_argument(
            name, nargs="+", type=kind, choices=valid, default=list(valid), metavar="X", help=text
        )

    choice("--only", str, names, "these layers")
    choice("--batch", int, BATCHES, "these batch sizes")
    choice("--type", str, list(TYPES), "these types")
    choice("--layout", str, LAYOUTS, "these layouts")
    choice("--fusion", str, FUSIONS, "with this behind them")
    parser.add_argument("--quick", action="store_true", help="what the goals ask for, and fewer replays")
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile")
    parser.add_argument("--seconds", type=float, default=3600.0, help="begin nothing after this time")
    parser.add_argument("--again", action="store_true", help="forget what is measured already")
    parser.add_argument("--output", type=Path, help="the file (default: by the device, in bench/results)")
    return parser.parse_args(argv)


def chosen(arguments: argparse.Namespace) -> list[Task]:
    """What to measure, the most important first."""
    wanted = cases(arguments.batch, arguments.type, arguments.layout, arguments.fusion, arguments.only)
    if arguments.quick:
        wanted = [
            case for case in wanted if case.batch == 128 and (case.fusion == "alone" or case.in_network)
        ]
    return tasks(wanted, not (arguments.no_compile or arguments.quick))


def main() -> int:
    arguments = parsed()
    end = time.monotonic() + arguments.seconds
    results = opened("bench_kernels", arguments.output, arguments.again)
    from tools._gpu import timing

    console = Console(
        width=None if sys.stdout.isatty() else 160, soft_wrap=True, highlight=False, markup=False
    )
    bench = Bench(results, console, stored.DEVICE)
    try:
        bench.part("copy", lambda: copy(results))
        bench.part("memory", lambda: memory(stored.DEVICE))
        bench.part("overhead", lambda: overhead(stored.DEVICE))
        status = bench.run(chosen(arguments), timing.Timer(5 if arguments.quick else 9), end)
    except KeyboardInterrupt:
        status = INTERRUPTED
        console.print("Interrupted.")
    report(results.data, console)
    console.print(f"Measured so far: {results.path}")
    return status


class Bench:
    """Measures on one device, and writes each result at once. most: seconds of one case."""

    def __init__(self, results: Results, console: Console, device: str, most: float = MOST) -> None:
        self.results, self.console, self.device, self.most = results, console, device, most

    def part(self, name: str, measure: Callable[[], dict[str, Any]]) -> None:
        """A part that is measured at once, unless it is known; its failure does not end the run."""
        if name in self.results.data:
            return
        try:
            self.results.data[name] = measure()
            self.results.worked(name)
        except Exception as error:  # of any kind: the other parts are still wanted
            self.results.failed(name, error)
            self.console.print(f"{name}: {type(error).__name__}: {error}")

    def run(self, wanted: list[Task], timer: Stopwatch, end: float) -> int:
        """All tasks that are not known, until the time is over: an exit status."""
        open_ = [task for task in wanted if not known(self.results.data, task)]
        self.console.print(f"{len(wanted)} cases, {len(wanted) - len(open_)} of them measured before")
        self.console.print(HEADING)
        columns = (
            *(TextColumn("{task.description}"), BarColumn()),
            *(MofNCompleteColumn(), TimeElapsedColumn()),
        )
        left = 0
        hidden = not self.console.is_terminal
        with Progress(*columns, console=self.console, transient=True, disable=hidden) as bar:
            shown = bar.add_task("", total=len(open_))
            for task in open_:
                bar.update(shown, description=task.case.key)
                if time.monotonic() > end - (COMPILING if task.compiled else 0):
                    left += 1
                    continue
                self.attempt(task, timer)
                self.console.print(line(self.results.data, task))
                bar.advance(shown)
                if not self.usable():
                    self.broke(task)
                    self.console.print("The device does not answer any more.")
                    return BROKEN
        if left:
            self.console.print(f"Out of time: {left} cases are left; run it again to go on.")
        keys = [task.case.key for task in wanted]
        found = self.results.data.get("cases", {})
        return int(any(found[key]["failure"] for key in keys if key in found))

    def attempt(self, task: Task, timer: Stopwatch) -> None:
        """One task, and its result in the file, whatever happens."""
        record = self.record(task.case)
        record[WHO[task.compiled][1]] = ""
        guard = threading.Timer(self.most, self.give_up, [task])
        guard.daemon = True
        guard.start()
        try:
            self.measure(task, timer)
        except Exception as error:  # of any kind: it is this case's result
            self.failed(task, f"{type(error).__name__}: {error}")
        finally:
            guard.cancel()
        self.results.save()

    def failed(self, task: Task, why: str) -> None:
        """Notes it with the case."""
        self.record(task.case)[WHO[task.compiled][1]] = why[:1000]

    def broke(self, task: Task) -> None:
        """Notes that a task is not to be tried again."""
        self.record(task.case).setdefault("broke", []).append(WHO[task.compiled][0])
        self.results.save()

    def give_up(self, task: Task) -> None:
        """Ends the process, whose main thread waits for the device."""
        self.failed(task, f"it did not end in {self.most:.0f} s")
        self.broke(task)
        print(f"{task.case.key} did not end in {self.most:.0f} s.", flush=True)
        os._exit(BROKEN)

    def record(self, case: Case) -> dict[str, Any]:
        """What is known of a case."""
        found: dict[str, Any] = self.results.part("cases").setdefault(
            case.key, {"rows": {}, "errors": {}, "failure": "", "us": {which: {} for which in PASSES}}
        )
        return found

    def measure(self, task: Task, timer: Stopwatch) -> None:
        """One task's checks and times."""
        import torch

        from tools._gpu import modules

        case, record = task.case, self.record(task.case)
        speed = self.results.data.get("copy", {}).get("gb_per_s", 1000.0)
        tensors = modules.Tensors.drawn(case, self.device)
        if task.compiled:
            torch._dynamo.reset()
        else:
            record.update(modules.checked(case, tensors))
        for name in ["compile"] if task.compiled else modules.names(tensors):
            contender = modules.contender(name, case, tensors)
            for which in PASSES:
                expected = case.floor(which) / speed / 1e3
                with modules.watched() as watch:
                    record["us"][which][name] = timer.us(lambda: contender.work(which), expected)  # noqa: B023
                if watch.reasons and not record["failure"]:
                    record["failure"] = "; ".join(dict.fromkeys(watch.reasons))

    def usable(self) -> bool:
        """Whether the device still works: after an illegal access nothing does in this process."""
        if self.device != "cuda":
            return True
        import torch

        try:
            torch.cuda.synchronize()
        except RuntimeError:
            return False
        return True


def known(result: dict[str, Any], task: Task) -> bool:
    """Whether a task was done before, or broke the device; what otherwise failed is tried again."""
    found = result.get("cases", {}).get(task.case.key)
    if found is None:
        return False
    who, failure = WHO[task.compiled]
    done = all(who in found["us"][which] for which in PASSES) and not found.get(failure)
    return done or who in found.get("broke", [])


def copy(results: Results) -> dict[str, Any]:
    """The bandwidth that all others are told as parts of; the clocks are read meanwhile."""
    from tools._gpu import timing

    def read_clocks() -> None:
        results.data["clocks"] = clocks()

    return timing.copy_bandwidth(during=read_clocks)


def memory(device: str, case: Case = MEMORY) -> dict[str, Any]:
    """What training holds of one large layer with a ReLU, and with a sum and a ReLU, behind it."""
    from tools._gpu import modules

    found = {}
    for fusion in FUSIONS[1:]:
        each = Case(case.layer, case.batch, case.type, case.layout, fusion)
        tensors = modules.Tensors.drawn(each, device)
        names = {"bnfold": "bnfold", "torch": "cudnn"}  # cuDNN, if torch picks it
        found[fusion] = {who: modules.memory(each, tensors, name) for who, name in names.items()}
        found[fusion]["tensor"] = {"bytes": each.tensor}
    return found


def overhead(device: str) -> dict[str, Any]:
    """Microseconds of the host for a call in eager mode, on tensors whose kernels take less than that."""
    from tools._gpu import modules, timing

    found: dict[str, Any] = {}
    for fusion in ("alone", "add_relu"):
        case = Case(LAYERS[-1], 1, "bfloat16", "channels_last", fusion)
        tensors = modules.Tensors.drawn(case, device)
        for who, name in (("bnfold", "bnfold"), ("torch", "cudnn")):
            contender = modules.contender(name, case, tensors)
            with modules.watched() as watch:
                contender.forward()
            if name == "bnfold" and not watch.launches:
                raise RuntimeError("; ".join(watch.reasons) or "bnfold runs on no kernel")

            def both(contender: Any = contender) -> None:
                contender.gradients(contender.forward())

            times = found.setdefault(fusion, {})
            times.setdefault("forward", {})[who] = timing.host_us(contender.work("forward"))
            times.setdefault("forward and backward", {})[who] = timing.host_us(both)
            times.setdefault("eval", {})[who] = timing.host_us(contender.work("eval"))
    return found


def line(result: dict[str, Any], task: Task) -> str:
    """A case for a person: of each pass microseconds, part of the copy bandwidth, torch's time over it."""
    case, found = task.case, result["cases"][task.case.key]
    who = "compile" if task.compiled else "bnfold"
    behind = f"{case.fusion} (torch.compile)" if task.compiled else case.fusion
    text = f"{case.layer.name:<12} {case.batch:>5} {SHORT[case.type]} {SHORT[case.layout]:<6} {behind:<9}"
    for which in PASSES:
        time_ = goals.us(result, case, which, who)
        part = goals.fraction(result, case, which, who)
        theirs = goals.torch_us(result, case, which)
        text += f"{'-':>12}" if time_ is None else f"{time_:>12.1f}"
        text += f"{'-':>6}" if part is None else f"{part:>6.0%}"
        text += f"{'-':>8}" if time_ is None or theirs is None else f"{theirs / time_:>7.2f}x"
    if task.compiled:
        return f"{text}   {found.get('compile_failure', '')}".rstrip()
    errors = {key: value for key, value in found["errors"].items() if key in ("y", "dx", "dresidual", "eval")}
    worst = f"{max(errors.values()):.0e} " if errors else ""
    row = found["rows"].get("forward")
    return f"{text}   {worst}{found['failure'][:60] or 'ok'}, {row['row'] if row else 'no kernel'}"


def report(result: dict[str, Any], console: Console) -> None:
    """Sums over the network, host times, memory, and the goals."""
    copied = result.get("copy")
    if copied:
        console.print(f"\nLarge copy: {copied['gb_per_s']:.0f} GB/s")
    for each in goals.sums(result):
        console.print(
            f"53 layers, {each.title}, {each.which}: {each.ours:.2f} ms, torch {each.torch:.2f} ms "
            f"({each.torch / each.ours:.2f}x)"
        )
    for fusion, passes in result.get("overhead", {}).items():
        for which, times in passes.items():
            ours, theirs = (times[who]["median"] for who in ("bnfold", "torch"))
            console.print(f"host, {fusion}, {which}: {ours:.1f} us, torch {theirs:.1f} us")
    for fusion, found in result.get("memory", {}).items():
        for what in ("saved", "grown", "peak"):
            ours, theirs = (found[who][what] / 1e6 for who in ("bnfold", "torch"))
            console.print(f"memory, {fusion}, {what}: {ours:.1f} MB, torch {theirs:.1f} MB")
    for goal in goals.goals(result):
        said = {True: "holds", False: "does not hold", None: "not measured"}[goal.holds]
        console.print(f"Goal: {goal.text}: {said}" + (f" ({goal.detail})" if goal.detail else ""))


if __name__ == "__main__":
    raise SystemExit(main())
