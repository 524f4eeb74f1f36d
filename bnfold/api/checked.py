"""The check of a fold: by running both models, by a proof, or by both."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from bnfold.certificate import Certificate
from bnfold.onnx_graph.file.loaded import Loaded, load
from bnfold.options import Check
from bnfold.proof.decide import prove
from bnfold.proof.result import Proof
from bnfold.report.verification import Verification
from bnfold.verify.child import Child, Crashed
from bnfold.verify.process import verify

__all__ = ["compare"]


def compare(original: Loaded, folded: Loaded, check: Check, certificate: Certificate) -> Verification:
    """Whether a fold has changed nothing. What a proof leaves undecided, runs decide.

    Raises:
        BnfoldError: as `verify.process.verify`.
    """
    try:
        proof = _proof(original, folded, check, certificate)
    except Crashed as error:
        found = verify(original, folded, check)
        found.notes.append(f"compared, since the proof crashed ({error})")
        return found
    if proof.status == "refuted":
        return Verification([], "", "failed", "", 0.0, 0.0, proof=proof)
    if proof.status == "proved" and check.check == "proof":
        return Verification([], "", "passed", "", 0.0, 0.0, proof=proof)
    found = verify(original, folded, check)
    found.proof = proof
    return found


def _proof(original: Loaded, folded: Loaded, check: Check, certificate: Certificate) -> Proof:
    if not check.in_child:
        return prove(original, folded, certificate, check.shapes, check.seed)
    with closing(Child(check.timeout)) as child:
        places = child.placed(original), child.placed(folded)
        found: Proof
        found, _ = child.run(_proved, *places, certificate, check)
        return found


def _proved(first: Path, second: Path, certificate: Certificate, check: Check) -> Iterator[Proof]:
    yield prove(load(first), load(second), certificate, check.shapes, check.seed)
