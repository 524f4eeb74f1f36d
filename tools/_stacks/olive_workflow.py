"""Olive: a workflow that converts, folds and quantizes; the file that it leaves, run by onnxruntime."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tools._data.models import import_timm
from tools._peers.left import inspect, left
from tools._stacks.measure import INT8, Made, exported, measure
from tools._stacks.onnxruntime_int8 import started

os.environ["OLIVE_DISABLE_TELEMETRY"] = "1"  # which is read when Olive is imported
import_timm()  # with it, torchvision is as Olive's own imports need it

SCRIPT = """import torch


def load(path):
    return torch.load(path, weights_only=False)
"""


def make(module: nn.Module, x: Tensor, fold: dict[str, Any] | None) -> Made:
    """Dynamic quantization, which needs no data."""
    from olive.workflows import run

    from bnfold.integrations.olive import package_config

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        passes: dict[str, Any] = {"convert": {"type": "OnnxConversion"}}
        if fold is not None:
            if "quantize_for" in fold:  # what follows has one scale for a whole weight
                fold = fold | {"quantize_for": "int8-per-tensor"}
            passes["fold"] = {"type": "BnFold", **fold}
        passes["quantize"] = {"type": "OnnxDynamicQuantization"}
        torch.save(module, folder / "net.pt")
        (folder / "net.py").write_text(SCRIPT)
        workflow = {
            "input_model": {
                "type": "PyTorchModel",
                "model_path": str(folder / "net.pt"),
                "model_loader": "load",
                "model_script": str(folder / "net.py"),
                "io_config": {
                    "input_names": ["x"],
                    "input_shapes": [list(x.shape)],
                    "output_names": ["y"],
                },
            },
            "passes": passes,
            "evaluate_input_model": False,
            "cache_dir": str(folder / "cache"),
            "output_dir": str(folder / "out"),
            "log_severity_level": 3,
        }
        (folder / "workflow.json").write_text(json.dumps(workflow))
        made = run(folder / "workflow.json", package_config=package_config(folder / "package.json"))
        path = Path(made.get_best_candidate().model_path)
        written = path.read_bytes()
        own = inspect(exported(module, x))[1]
        return Made(left(path, own), started(written), lambda: started(written))


if __name__ == "__main__":
    measure(make, INT8, exported)
