"""What `bnfold prove` says of folds that were made wrong on purpose. Started by tools/mutants; takes an hour.

Networks are folded with their certificate, and then changed at one place each: a number, an attribute, an
operator, an operand, an edge (mutations.py), or a claim of the certificate. What is proved all the same is
computed in float64 beside the original: a false proof is one that is further from it than rounding is.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from rich.table import Table

import bnfold
from bnfold.certificate import Certificate
from bnfold.errors import BnfoldError
from bnfold.onnx_graph.file.loaded import load
from bnfold.onnx_graph.run.evaluators import Reference
from bnfold.onnx_graph.run.side_by_side import Feeds
from bnfold.onnx_graph.run.widened import float64_copy
from bnfold.proof.decide import prove
from bnfold.proof.operator import Undecided
from bnfold.proof.result import Proof
from tools._common import ROOT, origin, table
from tools._data.models import HALF, SEED, export_by_itself
from tools._zoo.again import Again
from tools._zoo.mutations import CLAIMS, MODELS, Subject, claims_of, place, shapes_of
from tools._zoo.sweep import Results, Sweep

_NETWORKS = """
    lcnet_050 mobilenetv3_small_100 tinynet_e regnetx_002 regnety_002 mixnet_s mnasnet_small levit_128s
    fastvit_t8 ghostnet_100 repvgg_a0 resnet18
"""
NETWORKS = tuple(_NETWORKS.split())
PATTERNS = "patterns"  # the tiny models of the tests, in the place of a network
CACHE = ROOT / ".cache" / "mutants"
SIZE = 96  # of the images, where the network does not fix it
COUNT, EACH = 850, 20  # mutants of a network, and of each pattern
BARE, CLAIMED = 40, 10  # every so many are proved without a certificate, and are of the certificate
# A false proof is so much further from the original than the right fold is, and so far at least, of the
# largest output; without a certificate single units in the last place may pass for another tool's rounding.
TIMES, LEAST, LEAST_BARE = 20.0, 1e-6, 1e-5
GAINS = (1.0, 20.0)  # of the random inputs


class Bench:
    """One model, its right fold, and what was found of its mutants so far."""

    def __init__(self, original: onnx.ModelProto, seed: int) -> None:
        self.original, self.rng = original, np.random.default_rng(seed)
        self.folded, report = bnfold.fold_onnx(original, verify=False, certificate=True)
        assert report.certificate is not None
        self.certificate: Certificate = report.certificate
        self.again = Again(original, self.folded, self.certificate)
        self.seconds = 0.0

    @cached_property
    def shapes(self) -> dict[str, tuple[Any, ...]]:
        try:
            return shapes_of(onnx.shape_inference.infer_shapes(self.folded).graph)
        except Exception:  # whatever onnx raises
            return {}

    def proof(self, folded: onnx.ModelProto, certificate: Certificate | None) -> Proof | None:
        """None: it is no model any more."""
        begin = time.perf_counter()
        try:
            if certificate is self.certificate:
                return self.again.proof(folded)
            return prove(load(self.original), load(folded), certificate)
        except BnfoldError:
            return None
        finally:
            self.seconds += time.perf_counter() - begin

    @cached_property
    def homes(self) -> dict[str, set[str]]:
        """By what a node of the folded model gives first: the tensors of the original that it goes into."""
        makers = {name: node for node in self.folded.graph.node for name in node.output if name}
        stands, scope = defaultdict(set), self.again.original
        for node in self.original.graph.node:
            for name in node.output:
                image = self.certificate.images.get(("", name))
                claimed = image is not None or ("", name) not in self.certificate.images
                if claimed and scope.constant(name) is None:  # of constants nothing is claimed
                    stands[name if image is None else image.name].add(name)
        found: dict[str, set[str]] = {}
        readers = defaultdict(list)
        for node in makers.values():
            for name in node.input:
                readers[name].append(node)
        for node in reversed(self.folded.graph.node):
            into: set[str] = set()
            for name in node.output:
                into |= stands.get(name, set()) or {t for n in readers[name] for t in found.get(place(n), ())}
            found[place(node)] = into
        return found

    @cached_property
    def feeds(self) -> list[dict[str, Any]]:
        feed = next(iter(Feeds(load(self.original), None, None, SEED)))
        return [{k: v * gain if v.dtype.kind == "f" else v for k, v in feed.items()} for gain in GAINS]

    def outputs(self, model: onnx.ModelProto) -> list[list[Any]]:
        """In float64, of each feed."""
        evaluator = Reference(float64_copy(load(model)))
        wide = [{k: v.astype(float) if v.dtype.kind == "f" else v for k, v in f.items()} for f in self.feeds]
        return [list(evaluator.run(feed).values()) for feed in wide]

    @cached_property
    def right(self) -> tuple[list[list[Any]], float]:
        """What the original gives, and how far the right fold is from it."""
        want = self.outputs(self.original)
        return want, apart(want, self.outputs(self.folded))

    def changed(self, mutant: onnx.ModelProto, bare: bool) -> float:
        """How far its outputs are from the original's, of what rounding explains."""
        want, rounding = self.right
        try:
            got = self.again.outputs(mutant, self.feeds)
        except Undecided:
            got = self.outputs(mutant)
        return apart(want, got) / max(TIMES * rounding, LEAST_BARE if bare else LEAST)


def apart(want: list[list[Any]], got: list[list[Any]]) -> float:
    """max |a - b| / max |a|, the largest over all outputs of all feeds."""
    worst = 0.0
    for xs, ys in zip(want, got, strict=True):
        for x, y in zip(xs, ys, strict=True):
            if not isinstance(x, np.ndarray) or not isinstance(y, np.ndarray) or x.shape != y.shape:
                return float("inf")
            x, y = x.astype(float), y.astype(float)
            fine = np.isfinite(x)
            if not np.array_equal(fine, np.isfinite(y)):
                return float("inf")
            if fine.any():
                worst = max(worst, float(np.abs(x - y)[fine].max() / max(np.abs(x[fine]).max(), 1e-3)))
    return worst


class Tally:
    """What was found. kinds: by kind of mutation, how often each outcome."""

    def __init__(self) -> None:
        self.kinds: dict[str, Counter[str]] = defaultdict(Counter)
        self.lists: dict[str, list[str]] = defaultdict(list)

    def note(self, kind: str, outcome: str, text: str = "") -> None:
        self.kinds[kind][outcome] += 1
        if text:
            self.lists[outcome].append(text)

    def mutant(self, bench: Bench, kind: str, bare: bool) -> bool:
        """One of the model. Returns whether there is a place for it."""
        mutant = onnx.ModelProto()
        mutant.CopyFrom(bench.folded)
        node = MODELS[kind](Subject(mutant.graph, bench.rng, bench.shapes))
        if node is None:
            return False
        self._judged(bench, kind, bare, mutant, node)
        return True

    def _judged(
        self, bench: Bench, kind: str, bare: bool, mutant: onnx.ModelProto, node: onnx.NodeProto
    ) -> None:
        given, where = None if bare else bench.certificate, f"{kind} of {node.name or place(node)}"
        found = bench.proof(mutant, given)
        self.note(kind, "mutants")
        if found is None:
            self.note(kind, "no model")
            return
        self.note(kind, found.status)
        if found.refusal is not None:
            named = _named(found, bench, node)
            self.note(kind, "named" if named else "unnamed", "" if named else f"{where}: {found}"[:300])
            if bare:
                self.note(kind, "named, bare" if named else "unnamed, bare")
            return
        try:
            size = bench.changed(mutant, bare)
        except (BnfoldError, ValueError) as error:
            self.note(kind, "not compared", f"{where}: {str(error)[:200]}")
            return
        if size <= 1:
            self.note(kind, "same function")
        else:
            how = "without a certificate" if bare else "with its certificate"
            self.note(kind, "FALSE PROOF", f"{where}, {how}: {size:.3g} times what rounding explains")

    def claim(self, bench: Bench, kind: str) -> None:
        """One of the certificate: a wrong claim must not hold."""
        keys = list(claims_of(bench.certificate))
        if not keys:
            return
        key = keys[bench.rng.integers(len(keys))]
        image = bench.certificate.images[key]
        assert image is not None
        changed = CLAIMS[kind](image, bench.rng)
        images = {**bench.certificate.images, key: changed}
        if changed is None:
            del images[key]
        found = bench.proof(bench.folded, replace(bench.certificate, images=images))
        self.note(kind, "mutants")
        if found is None:
            self.note(kind, "no model", f"{kind} of {key[1]}")
            return
        if found.refusal is None:
            self.note(kind, "proved", f"{kind} of {key[1]}" if changed is not None else "")
            return
        self.note(kind, found.status)
        readers = {n for node in bench.original.graph.node if key[1] in node.input for n in node.output}
        self.note(kind, "named" if found.refusal.tensor in readers | {key[1]} else "unnamed")


def _named(found: Proof, bench: Bench, node: onnx.NodeProto) -> bool:
    """Whether a refusal tells the node that was changed, or what it goes into."""
    told = [each for each in (found.refusal, found.begins) if each is not None]
    if any(each.tensor in bench.homes.get(place(node), ()) or each.node == node.name for each in told):
        return True
    # where the model does not run, onnxruntime tells the node
    return any(not each.tensor and f"({node.name})" in each.reason for each in told)


def one(name: str, count: int, folder: Path, seconds: float) -> None:
    """Measures one network, or the patterns, and stores what was found."""
    begin, tally, used = time.perf_counter(), Tally(), 0.0
    rights: Counter[str] = Counter()
    for number, original in enumerate(_originals(name, folder)):
        bench = Bench(original, number)
        rights[bench.again.right.status] += 1
        if bench.again.right.status != "proved":
            continue
        for turn in range(count if name != PATTERNS else EACH):
            if time.perf_counter() - begin > seconds:
                break
            if turn % CLAIMED == CLAIMED - 1:
                tally.claim(bench, list(CLAIMS)[bench.rng.integers(len(CLAIMS))])
                continue
            for kind in bench.rng.permutation(list(MODELS)):
                if tally.mutant(bench, str(kind), turn % BARE == BARE - 1):
                    break
        used += bench.seconds
    SWEEP.store(
        name,
        {
            **origin("onnx", "onnxruntime"),
            "right_folds": dict(rights),
            "seconds": round(time.perf_counter() - begin, 1),
            "proof_seconds": round(used, 1),
            "kinds": {kind: dict(found) for kind, found in tally.kinds.items()},
            "lists": dict(tally.lists),
        },
    )


def _originals(name: str, folder: Path) -> Any:
    if name == PATTERNS:
        from tests.onnx_graph.cases.patterns import PATTERNS as CASES

        for case in CASES:
            yield case.build()
        return
    path = folder / f"{name}.onnx"
    if not path.exists():
        export_by_itself(name, HALF, path, size=SIZE)
    yield onnx.load(path)


def totals(found: Mapping[str, Any], claims: bool) -> Counter[str]:
    """How often each outcome, of mutants of the model or of the certificate."""
    total: Counter[str] = Counter()
    for kind, outcomes in found["kinds"].items():
        if (kind in CLAIMS) == claims:
            total.update(outcomes)
    return total


def story(found: dict[str, Any]) -> str:
    """One network in a few words."""
    return ", ".join(f"{n} {what}" for what, n in totals(found, False).items())


def summary(results: Results) -> dict[str, Any]:
    """All networks together."""
    models: Counter[str] = Counter()
    claims: Counter[str] = Counter()
    for found in results.values():
        models += totals(found, False)
        claims += totals(found, True)
    refusals = models["named"] + models["unnamed"]
    return {
        "networks": list(results),
        "models": dict(models),
        "certificates": dict(claims),
        "named": round(models["named"] / refusals, 4) if refusals else None,
        "false_proofs": {
            n: f["lists"]["FALSE PROOF"] for n, f in results.items() if "FALSE PROOF" in f["lists"]
        },
    }


COLUMNS = ("mutants", "refuted", "undecided", "no model", "proved", "same function", "FALSE PROOF", "named")


def view(results: Results) -> Table:
    """Every network, then its certificates' mutants."""
    made = table("Mutants of folds", ("network", *COLUMNS), left=["network"])
    for name, found in results.items():
        for claims in (False, True):
            total = totals(found, claims)
            made.add_row(f"{name}{', claims' if claims else ''}", *(str(total[what]) for what in COLUMNS))
    return made


def main() -> None:
    parser = SWEEP.parser(__doc__)
    parser.add_argument("--count", type=int, default=COUNT, help=f"mutants of a network (default {COUNT})")
    parser.add_argument("--seconds", type=float, default=1e9, help="no more of a network after so long")
    parser.add_argument("--folder", type=Path, default=CACHE, help="where the exported networks are kept")
    arguments = SWEEP.parsed(parser)
    if arguments.one:
        one(arguments.one, arguments.count, arguments.folder, arguments.seconds)
        return
    names = ("count", "seconds", "folder")
    options = [text for key in names for text in (f"--{key}", str(getattr(arguments, key)))]
    SWEEP.run(arguments, lambda name: arguments.again or not SWEEP.known(name), options)


SWEEP = Sweep("mutants", "tools._zoo.mutants", story, view, summary, (*NETWORKS, PATTERNS))

if __name__ == "__main__":
    main()
