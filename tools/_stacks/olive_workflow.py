"""Olive: a workflow that converts, folds and quantizes; the file that it leaves, run by onnxruntime."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tools._common import session
from tools._data.models import export, import_timm
from tools._peers.left import inspect, left
from tools._stacks.measure import INT8, Made, measure

os.environ["OLIVE_DISABLE_TELEMETRY"] = "1"  # which is read when Olive is imported
import_timm()  # with it, torchvision is as Olive's own imports need it


def make(module: nn.Module, x: Tensor, fold: dict[str, Any] | None) -> Made:
    """Dynamic quantization, which needs no data."""
    from olive.workflows import run

    from bnfold.integrations.olive import package_config

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        raw = folder / "raw.onnx"
        export(module, x, raw)
        passes: dict[str, Any] = {"quantize": {"type": "OnnxDynamicQuantization"}}
        if fold is not None:
            passes = {"fold": {"type": "BnFold", **fold}} | passes
        workflow = {
            "input_model": {"type": "ONNXModel", "model_path": str(raw)},
            "passes": passes,
            "evaluate_input_model": False,
            "cache_dir": str(folder / "cache"),
            "output_dir": str(folder / "out"),
            "log_severity_level": 3,
        }
        (folder / "workflow.json").write_text(json.dumps(workflow))
        made = run(folder / "workflow.json", package_config=package_config(folder / "package.json"))
        path = Path(made.get_best_candidate().model_path)
        runs = session(path)
        entry = runs.get_inputs()[0].name
        return Made(left(path, inspect(raw)[1]), lambda x: runs.run(None, {entry: x.numpy()})[0])


if __name__ == "__main__":
    measure(make, INT8)
