"""The file that tools/gpu_check and tools/bench_kernels write, and what its numbers were measured on.

It is written after every measurement, as a whole or not at all: an interrupted run leaves what it has.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tools._common import RESULTS, ROOT, read, today, versions

PACKAGES = ("torch", "triton", "numpy", "cuda-core", "cuda-bindings")
NO_GPU = 2  # exit status
DEVICE = "cuda"  # where everything runs
CLOCKS = ("clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "power.limit", "temperature.gpu")


def missing() -> str | None:
    """Why nothing can be measured here; None if it can."""
    try:
        import torch
    except ImportError as error:
        return f"torch cannot be imported: {error}"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no CUDA device"
    return None


def need_gpu(tool: str) -> None:
    """Ends the program where there is no GPU."""
    reason = missing()
    if reason is not None:
        print(f"{tool} needs an NVIDIA GPU: {reason}. Nothing was written.", file=sys.stderr)
        raise SystemExit(NO_GPU)


def default_path(device: str) -> Path:
    return RESULTS / f"gpu_{re.sub('[^A-Za-z0-9]+', '_', device).strip('_')}.json"


def origin() -> dict[str, Any]:
    """What all numbers of a file have in common: the device, the versions, and the kernels' sources."""
    import torch

    properties = torch.cuda.get_device_properties(0)
    library: Any = torch.backends.cudnn
    cudnn = library.version() if library.is_available() else None
    return {
        "device": {
            "name": properties.name,
            "capability": [properties.major, properties.minor],
            "multiprocessors": properties.multi_processor_count,
            "memory": properties.total_memory,
            "l2": properties.L2_cache_size,
        },
        "driver": (asked("driver_version") or ["unknown"])[0],
        "versions": {**versions(*PACKAGES), "cuda": torch.version.cuda, "cudnn": cudnn},
        "kernels": sources(),
    }


def sources() -> str:
    """A hash of everything that runs when a batch norm does."""
    digest = hashlib.sha256()
    for folder in ("kernels", "nn"):
        for path in sorted((ROOT / "bnfold" / folder).glob("*")):
            if path.suffix in (".cuh", ".py"):
                digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def asked(*fields: str) -> list[str] | None:
    """What nvidia-smi says of the first device; None if it does not."""
    command = ["nvidia-smi", "--id=0", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return [field.strip() for field in done.stdout.strip().splitlines()[0].split(",")]


def clocks() -> dict[str, str]:
    """MHz, watts and degrees, at this moment."""
    return dict(zip(CLOCKS, asked(*CLOCKS) or [], strict=False))


class Results:
    """One file. What it holds already is kept if it comes from the same device, versions and kernels."""

    def __init__(self, path: Path, origin: dict[str, Any], again: bool = False) -> None:
        self.path, self.origin = path, origin
        known = {} if again else read(path)
        same = all(known.get(key) == value for key, value in origin.items())
        self.data: dict[str, Any] = {**(known if same else {}), **origin}

    def renewed(self) -> Results:
        """With what other processes have stored since."""
        return Results(self.path, self.origin)

    def part(self, name: str) -> dict[str, Any]:
        """A part of the file, to be filled."""
        found: dict[str, Any] = self.data.setdefault(name, {})
        return found

    def failed(self, part: str, error: BaseException | str) -> None:
        """Notes why a part has no numbers."""
        text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        self.part("errors")[part] = text[:2000]
        self.save()

    def worked(self, part: str) -> None:
        """Forgets that a part failed in an earlier run."""
        self.part("errors").pop(part, None)
        self.save()

    def save(self) -> None:
        self.data["date"] = today()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        whole = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        whole.write_text(written(self.data))
        whole.replace(self.path)


def opened(tool: str, path: Path | None, again: bool) -> Results:
    """The file of the device that is here, or that at `path`; ends the program where there is no GPU."""
    need_gpu(tool)
    signal.signal(signal.SIGTERM, _interrupt)
    about = origin()
    return Results(path or default_path(about["device"]["name"]), about, again)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def written(data: dict[str, Any]) -> str:
    """As JSON, with a line for each case."""
    parts = []
    for key, value in data.items():
        text = json.dumps(value)
        if key == "cases":
            lines = (f"  {json.dumps(name)}: {json.dumps(case)}" for name, case in value.items())
            text = "{\n" + ",\n".join(lines) + "\n }"
        parts.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"
