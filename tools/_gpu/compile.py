"""Compiles ahead, in several processes, every kernel that tools/bench_kernels will launch on a device."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import time
from typing import Any

from bnfold.kernels.compile import compiled
from bnfold.kernels.launch import Device, Problem, plan
from tools._gpu.layers import Case, cases

NAMES = {
    "bfloat16": "bnfold::bfloat16",
    "float16": "bnfold::half",
    "float32": "float",
}  # as the kernels have it
KERNELS = {"forward": 1, "backward": 1, "apply": 2}  # and how many other types each has
Instance = tuple[str, str]  # file and C++ name


def problem(case: Case, kernel: str) -> Problem:
    """A case's pass, with float32 parameters."""
    plane = case.layer.height * case.layer.width
    last = case.layout == "channels_last"
    outer, inner = (case.batch * plane, 1) if last else (case.batch, plane)
    types = (NAMES[case.type], *["float"] * KERNELS[kernel])
    return Problem(kernel, types, outer, case.layer.channels, inner)


def instances(limits: Device) -> list[Instance]:
    """Each kernel once."""
    found = (plan(problem(case, kernel), limits) for case in cases() for kernel in KERNELS)
    return list(dict.fromkeys((launch.source, launch.kernel) for launch in found if launch is not None))


def compile_all(wanted: list[Instance], arch: str, most: float) -> dict[str, Any]:
    """Fills the disk cache; tells how long it took, and what did not compile.

    Args:
        wanted: the kernels.
        arch: "sm_90".
        most: seconds, after which the rest is left to its first use.
    """
    start, failures, done = time.monotonic(), {}, 0
    workers = min(16, os.cpu_count() or 1, len(wanted))
    # Spawned: a process that has opened a CUDA device must not be forked.
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(workers, mp_context=context)
    try:
        futures = {pool.submit(_compile, each, arch): each for each in wanted}
        for future in concurrent.futures.as_completed(futures, timeout=most):
            problem_ = future.result()
            done += 1
            if problem_:
                failures[futures[future][1]] = problem_
    except concurrent.futures.TimeoutError:
        pass
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    seconds = round(time.monotonic() - start, 1)
    return {"instances": len(wanted), "done": done, "seconds": seconds, "failures": failures}


def _compile(instance: Instance, arch: str) -> str:
    """What is wrong, or nothing."""
    try:
        compiled(*instance, arch)
    except Exception as error:  # of any kind: it is told, and the others go on
        return f"{type(error).__name__}: {error}"[:2000]
    return ""
