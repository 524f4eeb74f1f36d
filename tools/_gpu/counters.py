"""What Nsight Compute counts in three kernels: how busy issue, ALU, memory and shared memory are.

A step of tools/gpu_check: forward, backward and evaluation of the layer 256x56x56 at batch 128, bfloat16,
channels last. Where there is no `ncu`, or it may not read counters, the result says so and nothing fails.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tools._common import ROOT, command
from tools._gpu import results
from tools._gpu.layers import LAYERS, PASSES, Case

CASE = Case(LAYERS[1], 128, "bfloat16", "channels_last", "alone")
METRICS = {
    "gpu__time_duration.sum": "time",
    "smsp__issue_active.avg.pct_of_peak_sustained_active": "issue slots, %",
    "sm__inst_executed_pipe_alu.avg.pct_of_peak_sustained_active": "ALU pipe, %",
    "smsp__inst_executed.sum": "instructions of warps",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "device memory, %",
    "dram__bytes_read.sum": "bytes read",
    "dram__bytes_write.sum": "bytes written",
    "l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum": "shared bank conflicts",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "warps, %",
}
PLACES = ("/usr/local/cuda/bin/ncu", "/opt/nvidia/nsight-compute/ncu")


def found_ncu() -> str | None:
    """The program, wherever it usually is."""
    return shutil.which("ncu") or next((each for each in PLACES if os.access(each, os.X_OK)), None)


def target() -> None:
    """What is profiled: each pass once, after one that warms up."""
    import torch

    from tools._gpu import modules

    ours = modules.contender("bnfold", CASE, modules.Tensors.drawn(CASE, results.DEVICE))
    runtime: Any = torch.cuda.cudart() if results.DEVICE == "cuda" else None
    for which in PASSES:
        work = ours.work(which)
        work()
        if runtime:
            torch.cuda.synchronize()
            runtime.cudaProfilerStart()
        work()
        if runtime:
            torch.cuda.synchronize()
            runtime.cudaProfilerStop()


def profiled(ncu: str) -> dict[str, Any]:
    """The counters by kernel; or what ncu says of why there are none."""
    asked = [ncu, "--clock-control", "none", "--profile-from-start", "off", "--csv", "--print-units", "base"]
    asked += ["--print-kernel-base", "function"]  # "forward", without its types
    asked += ["--metrics", ",".join(METRICS), *command("tools._gpu.counters", "--target")]
    done = subprocess.run(asked, capture_output=True, text=True, cwd=ROOT, check=False)
    found = read(done.stdout)
    if not found:
        words = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("==ERROR==")]
        return {"missing": (words or [f"ncu ended with {done.returncode}"])[0][:500]}
    return {"case": CASE.key, "kernels": found}


def read(text: str) -> dict[str, dict[str, float]]:
    """Of ncu's CSV: by kernel, the counters in words and base units."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    found: dict[str, dict[str, float]] = {}
    for row in csv.DictReader(lines):
        name = METRICS.get(row.get("Metric Name") or "")
        if name is not None:
            found.setdefault(row["Kernel Name"], {})[name] = float(row["Metric Value"].replace(",", ""))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="counters", description=__doc__)
    parser.add_argument("--output", type=Path, help="the file (default: by the device, in bench/results)")
    parser.add_argument("--target", action="store_true", help="what is profiled")
    given = parser.parse_args()
    if given.target:
        target()
        return 0
    stored = results.opened("counters", given.output, False)
    ncu = found_ncu()
    missing = {"missing": "ncu is not found: Nsight Compute brings it"}
    found: dict[str, Any] = profiled(ncu) if ncu else missing
    stored.data["counters"] = found
    stored.save()
    print(found.get("missing") or "")
    for kernel, counts in found.get("kernels", {}).items():
        print(f"{kernel}: " + ", ".join(f"{name} {value:g}" for name, value in counts.items()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
