"""One network in one stack, without bnfold and with it: what every contract measures, in the same way."""

from __future__ import annotations

import copy
import gc
import json
import logging
import os
import sys
import tempfile
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
from tools._stacks.timing import INSTANCES, Run, interleaved

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
    """What a stack made of a network.

    left: in its own artefact. run: computes the network's output. again: loads the artefact once more, to be
    timed; None: there is one in a process.
    """

    left: Left
    run: Run
    again: Callable[[], Run] | None = None


# The network, an example, and the keywords of the fold: those of `fold_onnx`; None: without bnfold.
Make = Callable[[nn.Module, Tensor, dict[str, Any] | None], Made]
KEYWORDS: dict[str, dict[str, Any] | None] = {
    WITHOUT: None,
    FOLD: {},
    FOR_INT8: {"quantize_for": "int8"},
    FREEZING: {"bnfold": False, "freeze": True},  # for torch.compile alone
    FOLD_FREEZE: {"freeze": True},
}
AGAINST = {FOLD: WITHOUT, FOR_INT8: WITHOUT, FREEZING: WITHOUT, FOLD_FREEZE: FREEZING}


def measure(
    make: Make,
    ways: tuple[str, ...],
    before: Callable[[nn.Module, Tensor], Any] | None = None,
) -> None:
    """Prints a line of JSON for the network that the command line names, made by one stack in these ways.

    before: what all ways need, which is done once and not timed.
    """
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    gc.disable()  # a tenth of the time of what rewrites graphs of torch, for little memory
    torch.set_num_threads(1)
    name, negative, size = NETWORKS[sys.argv[1]]
    module, x = network(name, negative, size)
    with torch.no_grad():
        exact = copy.deepcopy(module).double()(x.double()).numpy()
        rows, runs = dict[str, Any](), dict[str, list[Run]]()
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
            runs[way] = [made.run]
            if made.again is not None:
                runs[way] += [made.again() for _ in range(INSTANCES - 1)]
        for each in runs.values():
            for run in each[1:]:
                run(x)
        for way, found in interleaved(runs, AGAINST, x).items():
            rows[way] |= found
    print(json.dumps(rows), flush=True)


def processor() -> float:
    """Seconds of the processor that this process has used, and those that it started and that have ended."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


_own = tempfile.TemporaryDirectory()  # of this process
SHARED = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(_own.name)  # of all that one run measures


def exported(module: nn.Module, x: Tensor) -> Path:
    """The network's ONNX file, which is exported once for all stacks."""
    path = shared("raw.onnx")
    if not path.exists():
        export(module, x, path)
    return path


def shared(name: str) -> Path:
    """Where what is made of this network once lies for all stacks."""
    folder = SHARED / sys.argv[1].partition(",")[0]
    folder.mkdir(exist_ok=True)
    return folder / name


def difference(found: Any, exact: Any) -> dict[str, float]:
    """From the network in float64: the largest, relative to the largest output, and signal over noise."""
    off = found.astype(np.float64).reshape(exact.shape) - exact
    return {
        "error": float(np.abs(off).max() / np.abs(exact).max()),
        "decibels": float(10 * np.log10((exact**2).sum() / (off**2).sum())),
    }
