"""The check of a fold: by running both models, by a proof, or by both."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from bnfold.certificate import Certificate
from bnfold.errors import BnfoldError, ModelError
from bnfold.onnx_graph.file.loaded import Loaded, load
from bnfold.onnx_graph.run.evaluators import doubled
from bnfold.options import Check
from bnfold.proof.decide import prove
from bnfold.proof.result import Proof
from bnfold.report.verification import Verification
from bnfold.verify.child import Child, Crashed
from bnfold.verify.process import refused, refused_by_crash, verify

__all__ = ["compare"]


def compare(original: Loaded, folded: Loaded, check: Check, certificate: Certificate) -> Verification:
    """Whether a fold has changed nothing. What a proof leaves undecided, runs decide.

    Raises:
        BnfoldError: as `verify.process.verify`.
    """
    proof, notes = None, list[str]()
    try:
        proof, notes = _proof(original, folded, check, certificate)
    except (Crashed, ModelError, MemoryError) as error:  # what reads the models for a run may do better
        notes.append(f"compared, since a proof is not to be had: {error or type(error).__name__}")
    if proof is not None and proof.status == "refuted":
        return Verification([], "", "failed", "", 0.0, 0.0, proof=proof)
    if proof is not None and proof.status == "proved" and check.by == "proof":
        if not proof.ran:
            notes.append("the folded model was not run: onnxruntime runs neither it nor the original here")
        return Verification([], "", "passed", "", 0.0, 0.0, notes, proof)
    found = verify(original, folded, check)
    found.proof = proof
    if proof is None:
        found.notes += notes
    return found


def _proof(
    original: Loaded, folded: Loaded, check: Check, certificate: Certificate
) -> tuple[Proof, list[str]]:
    """The proof, and what onnxruntime's optimizer does not take, if there is a child to ask for it."""
    if not check.in_child:
        return _attempt(original, folded, certificate, check), _doubled()
    with closing(Child(check.timeout)) as child:
        first, second = child.placed(original), child.placed(folded)
        found: tuple[Proof, list[str]]
        found, crash = child.run(_proved, first, second, certificate, replace(check, inputs=None))
        found[1].extend(refused_by_crash(child, first, crash))
        return found


def _attempt(original: Loaded, folded: Loaded, certificate: Certificate, check: Check) -> Proof:
    """A fault of the proof must not keep runs from judging: it is told, and they do."""
    try:
        return prove(original, folded, certificate, check.shapes, check.seed)
    except (BnfoldError, MemoryError):
        raise
    except Exception as error:
        raise ModelError(f"a fault of bnfold, please report it ({type(error).__name__}: {error})") from error


def _doubled() -> list[str]:
    return list(filter(None, [doubled()]))


def _proved(
    first: Path, second: Path, certificate: Certificate, check: Check
) -> Iterator[tuple[Proof, list[str]]]:
    proof = _attempt(load(first), load(second), certificate, check)
    yield proof, []
    if proof.status == "proved" and proof.ran:
        yield proof, [*_doubled(), *refused(first, second)]
