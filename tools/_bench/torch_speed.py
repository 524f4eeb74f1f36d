"""A network of timm in eager mode, as it is and folded: how long one image takes. Measures one network.

    python -m tools._bench.torch_speed NETWORK [--seconds N]

prints one line of JSON. One thread, batch 1, `torch.inference_mode`. All variants live in this process and
run in rounds: each once a round, in an order that is drawn anew for every round, so that what slows the
machine down for a while slows all of them. `again` is a copy of the network as it is: what the two differ by
is noise.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bnfold.errors import first_line
from tools._data.models import SEED, network
from tools._peers.torch_left import left, of_module
from tools._peers.torch_peers import TOOLS, Folded, error

FOLDED = ("fold_module", "torch.fx fuse")
VARIANTS = ("as it is", "again", *FOLDED)
WARM_UP = 0.1  # of the time


def begun(description: str | None) -> tuple[nn.Module, Tensor, Tensor, float]:
    """What the command line asks for: a network, its input, its output in float64, and the seconds."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("network")
    parser.add_argument("--seconds", type=float, default=40.0)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    module, x = network(arguments.network)
    with torch.no_grad():
        exact = copy.deepcopy(module).double()(x.double())
    return module, x, exact, arguments.seconds


def main() -> None:
    module, x, exact, budget = begun(__doc__)
    made = {name: variant(name, module, x) for name in VARIANTS}
    runs = {name: folded.run for name, folded in made.items() if isinstance(folded, Folded)}
    seconds, rounds = in_rounds(runs, x, budget)
    results = {name: described(folded, x, exact) for name, folded in made.items()}
    for name, times in seconds.items():
        results[name].update(summary(times))
    print(json.dumps({"threads": 1, "rounds": rounds, "variants": results}), flush=True)


def variant(name: str, module: nn.Module, x: Tensor) -> Folded | str:
    """The network as it is or folded; what the tool said if it failed."""
    module = copy.deepcopy(module)
    if name not in FOLDED:
        return Folded(module, left(of_module(module, x)))
    try:
        return TOOLS[name](module, x)
    except Exception as raised:  # whatever stops a peer is its result
        return f"{type(raised).__name__}: {first_line(raised)}"[:200]


def in_rounds(
    runs: dict[str, Callable[[Tensor], Tensor]], x: Tensor, budget: float
) -> tuple[dict[str, list[float]], int]:
    """Seconds of each run, and the number of rounds; the first tenth of the time warms up."""
    order, rng = list(runs), random.Random(SEED)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    begin = time.perf_counter()
    rounds = 0
    with torch.inference_mode():
        while (now := time.perf_counter() - begin) < budget or rounds < 3:
            warm = now > WARM_UP * budget
            rng.shuffle(order)
            for name in order:
                start = time.perf_counter()
                runs[name](x)
                if warm:
                    seconds[name].append(time.perf_counter() - start)
            rounds += warm
    return seconds, rounds


def described(folded: Folded | str, x: Tensor, exact: Tensor) -> dict[str, Any]:
    """What is left of the batch norms, and the error against float64, relative to the largest output."""
    if isinstance(folded, str):
        return {"failure": folded}
    with torch.inference_mode():
        off = error(folded.run(x), exact)
    return {
        "failure": "",
        "left": folded.left.batch_norms,
        "identity": folded.identity,
        "error": off,
    }


def summary(seconds: list[float]) -> dict[str, float]:
    """In milliseconds."""
    low, middle, high = statistics.quantiles((1e3 * s for s in seconds), n=4)
    return {"quartile_1": low, "median": middle, "quartile_3": high}


if __name__ == "__main__":
    main()
