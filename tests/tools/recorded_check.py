"""tools/gpu_check from end to end where no GPU is: on the recording driver, with tensors of the CPU.

Nothing is computed, so values are not judged and times are made up; a small layer stands for all, and the
tests for a GPU are left out. test_gpu_steps.py starts this and judges. Arguments: those of gpu_check, behind
one that says what the driver refuses: "nothing", or "everything".
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


class Stopwatch:
    """Runs the work twice, and says that it took a microsecond."""

    def __init__(self, replays: int) -> None:
        self.replays = replays

    def us(self, prepare: Any, expected: float) -> dict[str, float]:
        work = prepare()
        work()
        work()
        return {"median": 1.0, "quartile_1": 1.0, "quartile_3": 1.0}


def once(work: Any) -> dict[str, float]:
    work()
    return {"median": 1.0}


def here(module: str, arguments: list[object], seconds: float) -> int:
    """A module of the tools, in this process, which has the driver."""
    before, sys.argv = sys.argv, [module, *map(str, arguments)]
    try:
        status: int = importlib.import_module(module).main()
    finally:
        sys.argv = before
    return status


def main(refused: str) -> int:
    os.environ["BNFOLD_CACHE"] = str(ROOT / ".cache" / "cubins")
    from tests.kernels.driver import Driver

    driver = Driver()
    import torch

    from bnfold.kernels.device import cuda_device
    from bnfold.nn import functional, kernel_calls
    from tools._gpu import check, compile, counters, kernels, layers, modules, preflight, results, timing

    about = {"name": "Made Up 200", "capability": [9, 0], "multiprocessors": 132, "memory": 1, "l2": 1}
    origin = {"device": about, "driver": "1.2", "versions": {"torch": "2"}, "kernels": "0" * 16}
    small = layers.Layer(16, 7, 7, {"alone": 1, "relu": 1, "add_relu": 1})
    case = layers.Case(small, 8, *layers._KINDS[0], "add_relu")
    compiled = {"instances": 1, "done": 1, "seconds": 0.0, "failures": {}}
    passed = {**check.gpu_tests.ends("", 0), "outcome": "passed", "seconds": 0.0}
    changes: list[tuple[Any, dict[str, Any]]] = [
        (results, {"DEVICE": "cpu", "missing": lambda: None, "origin": lambda: origin}),
        (kernel_calls, {"machine_of": lambda x: cuda_device(0)}),
        (functional, {"_device_usable": lambda device: True}),
        (modules, {"error": lambda found, wanted: 0.0}),
        (preflight, {"same_bits": lambda a, b: True, "KINDS": preflight.KINDS[:1]}),
        (timing, {"Timer": Stopwatch, "host_us": once}),
        (timing, {"copy_bandwidth": lambda during: {"bytes": 1, "gb_per_s": 1.0}}),
        (layers, {"LAYERS": (small,), "_KINDS": layers._KINDS[:1], "BATCHES": (128,)}),
        (kernels, {"LAYERS": (small,), "memory": functools.partial(kernels.memory, case=case)}),
        (compile, {"compile_all": lambda wanted, arch, most: compiled}),
        (counters, {"CASE": case, "found_ncu": lambda: None}),
        (check.gpu_tests, {"run": lambda log, seconds: passed}),
        (check, {"ended": here}),
        (torch, {"compile": lambda module, **_: module}),
    ]
    for module, values in changes:
        for name, value in values.items():
            assert hasattr(module, name), f"{module.__name__}.{name}"
            setattr(module, name, value)
    if refused == "everything":
        driver.refuse(True)
    else:
        counters.target()
    status = check.main()
    print(f"launches: {driver.launches}")
    return status


if __name__ == "__main__":
    raise SystemExit(main(sys.argv.pop(1)))
