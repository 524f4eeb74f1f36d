"""Random graphs, folded and then proved. Started by tools/random_proofs; 100,000 of them take hours.

The graphs are those of the tests, larger ones among them, under eight sets of options. Each fold is proved
with its certificate, and one in four without it as well. Whatever is not proved is stored with its seed and
the proof's words. A block of seeds is stored when it is done, so that a run goes on where it stopped; a
change of the package begins anew.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import os
import time
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import onnx

import bnfold
from bnfold.errors import BnfoldError
from bnfold.onnx_graph.file.loaded import load
from bnfold.proof.decide import prove
from tests.onnx_graph.cases.random_graphs import random_model
from tests.onnx_graph.cases.random_sums import random_sums
from tests.passes.channels.planted import planted
from tools._common import RESULTS, ROOT, ending, origin, read, shown, write

RESULT = RESULTS / "random_proofs.json"
BLOCK = 500  # seeds
BARE = 4  # every so many are proved without a certificate too
KINDS: tuple[Callable[[int], onnx.ModelProto], ...] = (
    random_model,
    lambda seed: random_model(seed, 6 + seed % 40),
    lambda seed: random_sums(seed).model(),
    random_model,
    planted,
    lambda seed: random_model(seed, 10),
)
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"target": "tensorrt"},
    {"drop_dead_channels": True},
    {"merge_branches": False},
    {"shared": "skip"},
    {"target": "tensorrt", "drop_dead_channels": True, "lower_batch_statistics": True},
    {"shared": "skip", "merge_branches": False, "lower_batch_statistics": True},
    {"precision": "fp16"},
)


def sources() -> str:
    """A hash of the package's Python files."""
    found = hashlib.sha256()
    for path in sorted((ROOT / "bnfold").rglob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


def block(first: int) -> dict[str, Any]:
    """What is found of the seeds from `first` on: how often each outcome, and all that is not proved."""
    warnings.simplefilter("ignore")
    count, others = Counter[str](), []
    for seed in range(first, first + BLOCK):
        options = OPTIONS[seed // len(KINDS) % len(OPTIONS)]
        model = KINDS[seed % len(KINDS)](seed)
        try:
            folded, report = bnfold.fold_onnx(model, verify=False, certificate=True, **options)
        except BnfoldError as error:
            count["refused"] += 1
            others.append({"seed": seed, "outcome": "refused", "said": str(error)[:300]})
            continue
        count["graphs"] += 1
        for certificate in (report.certificate, None)[: 1 + (seed % BARE == 0)]:
            found, how = prove(load(model), load(folded), certificate), "" if certificate else ", bare"
            count[found.status + how] += 1
            if found.refusal is not None:
                others.append({"seed": seed, "outcome": found.status + how, "said": str(found)[:300]})
    return {"count": dict(count), "others": others}


def total(blocks: dict[str, Any]) -> Counter[str]:
    """Over all blocks."""
    found: Counter[str] = Counter()
    for one in blocks.values():
        found.update(one["count"])
    return found


def story(count: Counter[str]) -> str:
    """Counts in a line."""
    return ", ".join(f"{number:,} {what}" for what, number in count.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="random_proofs")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default 0)")
    parser.add_argument("--graphs", type=int, default=100_000, help="how many seeds (default 100,000)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (default: one a core)")
    arguments = parser.parse_args()
    known = read(RESULT)
    blocks: dict[str, Any] = known["blocks"] if known.get("sources") == sources() else {}
    wanted = range(arguments.first, arguments.first + arguments.graphs, BLOCK)
    left = [first for first in wanted if str(first) not in blocks]
    begin = time.perf_counter()
    with ending("random_proofs"), concurrent.futures.ProcessPoolExecutor(arguments.jobs) as pool:
        done = {pool.submit(block, first): first for first in left}
        for future in concurrent.futures.as_completed(done):
            blocks[str(done[future])] = future.result()
            result = {**origin("onnx", "onnxruntime"), "sources": sources(), "count": dict(total(blocks))}
            write(RESULT, result | {"blocks": blocks})
            print(f"{time.perf_counter() - begin:.0f} s: {story(total(blocks))}", flush=True)
    print(f"wrote {shown(RESULT)}")


if __name__ == "__main__":
    main()
