"""One network in one stack, without bnfold and with it: what every contract measures, in the same way."""

from __future__ import annotations

import copy
import json
import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tools._data.models import export, network
from tools._peers.left import Left

ROUNDS = 9  # timed calls of each, in turn; where speed is what is claimed, more
# The networks by timm's name; the part of the scales that are negative, and the size of the images.
NETWORKS = {
    "levit_128s": ("levit_128s", 0.5, None),
    "repvgg_a0": ("repvgg_a0", 0.5, 96),
    "densenet121": ("densenet121", 0.5, 96),
    "resnetv2_50, positive scales": ("resnetv2_50", 0.0, 96),
    "resnet50": ("resnet50", 0.5, 224),
    "mobileone_s0": ("mobileone_s0", 0.5, 224),
}
WITHOUT, FOLD, FOR_INT8 = "without", "bnfold", "bnfold, for int8"
FREEZING, FOLD_FREEZE = "without, freezing", "bnfold, freezing"
FLOAT, INT8, COMPILED = (WITHOUT, FOLD), (WITHOUT, FOLD, FOR_INT8), (WITHOUT, FOLD, FREEZING, FOLD_FREEZE)


@dataclass(frozen=True)
class Made:
    """What a stack made of a network. left: in its own artefact. run: computes the network's output."""

    left: Left
    run: Callable[[Tensor], Any]


# The network, an example, and the keywords of the fold: those of `fold_onnx`; None: without bnfold.
Make = Callable[[nn.Module, Tensor, dict[str, Any] | None], Made]
KEYWORDS: dict[str, dict[str, Any] | None] = {
    WITHOUT: None,
    FOLD: {},
    FOR_INT8: {"quantize_for": "int8"},
    FREEZING: {"bnfold": False, "freeze": True},  # for torch.compile alone
    FOLD_FREEZE: {"freeze": True},
}


def measure(
    make: Make,
    ways: tuple[str, ...],
    before: Callable[[nn.Module, Tensor], Any] | None = None,
    rounds: int = ROUNDS,
) -> None:
    """Prints a line of JSON for the network that the command line names, made by one stack in these ways.

    before: what all ways need, which is done once and not timed.
    """
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    name, negative, size = NETWORKS[sys.argv[1]]
    module, x = network(name, negative, size)
    with torch.no_grad():
        exact = copy.deepcopy(module).double()(x.double()).numpy()
        rows, runs = dict[str, Any](), dict[str, Callable[[Tensor], Any]]()
        if before is not None:
            before(module, x)
        for way in ways:
            begin = processor()
            made = make(copy.deepcopy(module), x, KEYWORDS[way])
            first = np.asarray(made.run(x))
            rows[way] = {
                "seconds": processor() - begin,
                "batch_norms": made.left.batch_norms,
                "per_channel": made.left.per_channel,
                **difference(first, exact),
            }
            runs[way] = made.run
        for way, taken in milliseconds(runs, x, rounds).items():
            rows[way]["milliseconds"] = taken
    print(json.dumps(rows), flush=True)


def processor() -> float:
    """Seconds of the processor that this process has used, and those that it started and that have ended."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


_folder = tempfile.TemporaryDirectory()


def exported(module: nn.Module, x: Tensor) -> Path:
    """The network's ONNX file; a process measures one network, and exports it once."""
    path = Path(_folder.name) / "raw.onnx"
    if not path.exists():
        export(module, x, path)
    return path


def difference(found: Any, exact: Any) -> dict[str, float]:
    """From the network in float64: the largest, relative to the largest output, and signal over noise."""
    off = found.astype(np.float64).reshape(exact.shape) - exact
    return {
        "error": float(np.abs(off).max() / np.abs(exact).max()),
        "decibels": float(10 * np.log10((exact**2).sum() / (off**2).sum())),
    }


def milliseconds(runs: dict[str, Callable[[Tensor], Any]], x: Tensor, rounds: int) -> dict[str, float]:
    """Medians of the processor's time, on one thread; they run in turn."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            begin = time.process_time()
            run(x)
            times[name].append(time.process_time() - begin)
    return {name: statistics.median(taken) * 1e3 for name, taken in times.items()}
