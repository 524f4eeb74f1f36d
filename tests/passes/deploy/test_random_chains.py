"""Random chains of all that may stand around a batch norm: rewritten, they compute the same.

BNFOLD_GRAPHS=5000 runs more of them than the test-suite does.
"""

from __future__ import annotations

import os
from collections import Counter

import numpy as np

from bnfold.api.fold_onnx import fold_loaded
from bnfold.errors import BnfoldError
from bnfold.onnx_graph.file.loaded import load
from bnfold.options import Check, Fold
from bnfold.passes.deploy import bnfold_ops as ops
from bnfold.verify.models import verify
from tests.onnx_graph.build import Build
from tests.onnx_graph.damage import damage
from tests.onnx_graph.look import difference, feeds, run
from tests.passes.deploy.test_rewrite import relu, rewritten, statistics

GRAPHS = int(os.environ.get("BNFOLD_GRAPHS", "300"))
NEAR = 1e-5  # dozens of float32 operations, among them statistics of a few values, which amplify


class Grower:
    """One random model: heads and steps are drawn, any tensor may get another reader."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.g = Build(int(self.rng.choice([14, 15, 17, 18, 20])), seed=seed)
        self.trains = False
        rank = int(self.rng.integers(2, 6))
        sizes = [int(size) for size in self.rng.integers(2, 5, rank)]
        named = ["n", 4, *(f"d{axis}" for axis in range(2, rank))]
        shape = [name if self.rng.random() < 0.2 else size for name, size in zip(named, sizes, strict=True)]
        self.shape = (shape[0], int(sizes[1]), *shape[2:])
        self.x = self.g.input("x", self.shape)

    def operand(self) -> str:
        g, channels, rank = self.g, self.shape[1], len(self.shape)
        wide = (channels, *[1] * (rank - 2))
        kind = self.rng.integers(6)
        if kind == 0:
            return g.const(g.normal((1, *wide)), "operand")
        if kind == 1:
            return g.const(g.normal(wide), "operand")
        if kind == 2:
            return g.const(0.75, "operand")
        if kind == 3:
            return g.input(g.fresh("set"), (1, *wide))
        if kind == 4 and rank > 2:
            return g.input(g.fresh("sets"), (self.shape[0], *wide))
        return g.input(g.fresh("flat"), wide)

    def step(self, y: str) -> str:
        g, kind = self.g, self.rng.integers(9)
        if kind == 0:
            return g.bn(y)
        if kind == 1:
            self.trains = True
            parameters, how = g.norm_parameters(g.channels(y)), {"training_mode": 1}
            return g.ops("BatchNormalization", y, *parameters, count=3, **how)[0]
        if kind == 2:
            gamma, beta, *_ = g.norm_parameters(g.channels(y))
            return g.op("BatchNormalization", y, gamma, beta, *statistics(g, y))
        if kind in (3, 4):
            return g.op("Mul", *self.rng.permutation([y, self.operand()]).tolist())
        if kind == 5:
            return g.op("Add", *self.rng.permutation([y, self.operand()]).tolist())
        if kind == 6:
            return g.op("Add", *self.rng.permutation([y, g.op("Tanh", self.x)]).tolist())
        return relu(g, y) if kind == 7 else g.op("Tanh", y)

    def grow(self) -> Build:
        y, seen = self.x, [self.x]
        for _ in range(int(self.rng.integers(3, 12))):
            y = self.step(y)
            seen.append(y)
        if self.rng.random() < 0.3:
            self.g.output(self.g.op("Sigmoid", str(self.rng.choice(seen))))
        if self.rng.random() < 0.1:
            self.g.output(str(self.rng.choice(seen[1:-1])))
        self.g.output(self.g.op("Tanh", y))
        return self.g


def test_random_chains_compute_the_same() -> None:
    made: Counter[str] = Counter()
    for seed in range(GRAPHS):
        grower = Grower(seed)
        model = grower.grow().model()
        result, done, _ = rewritten(model)
        made.update(entry.op.removeprefix("bnfold.") for entry in done)
        feed = feeds(model, seed)
        expected = run(model, feed, "reference" if grower.trains else "onnxruntime")
        if not difference(expected, run(result, feed)) <= NEAR:  # rounding, or wrong? float64 tells
            verification = verify(model, result, Check(rtol=NEAR, inputs=feed))
            assert verification.status == "passed", f"seed {seed}: {verification}"
    missing = {variant.name for variant in ops.variants()} - set(made)
    assert not missing, made  # or the graphs test less than they claim


def test_damaged_chains_end_in_one_clear_error_or_are_rewritten() -> None:
    ends, messages = {"rewritten": 0, "refused": 0}, []
    for seed in range(GRAPHS):
        for options in ({"target": "tensorrt"}, {"lower_batch_statistics": True}):
            try:
                fold_loaded(
                    load(damage(Grower(seed).grow().model(), seed)), Fold(**options), Check(verify=False)
                )
                ends["rewritten"] += 1
            except BnfoldError as error:
                messages.append(str(error))
                ends["refused"] += 1
    assert all(message and "\n" not in message for message in messages)
    assert min(ends.values()) > GRAPHS // 20, ends
