"""A result that is wrong: which step of the work broke it? Found by bisection, for every kind of model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple, Protocol

from bnfold.errors import BnfoldError, VerifyError
from bnfold.report.fold import Report
from bnfold.report.table import first
from bnfold.report.verification import Told, Verification

__all__ = ["ALL", "Part", "Work", "conclude", "first_bad", "judge"]


class Part(NamedTuple):
    """How much of the work is done: folds of these names, and so many merges and passes. None: all."""

    folds: Collection[str] | None = None
    merges: int | None = None
    passes: int | None = None


ALL = Part()


class Work(NamedTuple):
    """All that was done, in this order: names of what folded and of what merged, and passes in words."""

    folds: Sequence[str]
    merges: Sequence[str] = ()
    passes: Sequence[str] = ()

    def part(self, steps: int) -> Part:
        """The first so many steps."""
        merges = max(0, steps - len(self.folds))
        return Part(
            frozenset(self.folds[:steps]),
            min(merges, len(self.merges)),
            max(0, merges - len(self.merges)),
        )

    def words(self) -> list[str]:
        """What to say of a step that is to blame."""
        return [
            *(f"the first fold that broke it is {name}" for name in self.folds),
            *(f"no fold broke it, but the merging of branches into {name} did" for name in self.merges),
            *(f"no fold broke it, but {name} did" for name in self.passes),
        ]


def judge(
    report: Report,
    found: Verification,
    work: Work,
    again: Callable[[Part], Verification],
    said: str = "the folded model does not compute the same",
    source: str = "",
) -> None:
    """Note what the check found, and raise if the result is wrong.

    Args:
        report: gets the verification.
        found: by the check of all the work.
        work: what was done.
        again: the check of a part of it.
        said: what the error begins with.
        source: what to blame if the model is wrong before any step; "": it is known to be right.

    Raises:
        VerifyError: the check failed; the message names the first step that broke the model.
    """
    if found.proof is not None and not found.outputs:  # it names the node
        conclude(report, found, said, lambda: f": {_concerned(report, found.proof)}")
    else:
        conclude(report, found, said, lambda: f": {_blame(work, again, source)}")


def _concerned(report: Report, proof: Told | None) -> str:
    """What was done to the node at which a proof says that the models differ."""
    data = {} if proof is None else proof.to_dict()
    node = (data.get("begins") or data.get("refusal") or {}).get("node", "")
    folds = [one.name for one in report.entries if one.outcome == "folded" and node in (one.name, *one.into)]
    merges = [merge.name for merge in report.merged if node in (merge.name, *merge.replaces)]
    parts = [f"the fold of {name}" for name in folds]
    parts += [f"the merging of branches into {name}" for name in merges]
    return f"{node} is wrong" + (f", a part of {first(parts, 4)}" if parts else "")


class Judged(Protocol):
    """A report of something that was checked."""

    verification: Verification | None


def conclude(report: Judged, found: Verification, said: str, blame: Callable[[], str] = str) -> None:
    """Note what the check found, and raise `VerifyError` if it failed. blame: goes on with what was said."""
    report.verification = found
    if found.status == "failed":
        error = VerifyError(f"{said}{blame()}\n{found}")
        error.report = report
        raise error


def _blame(work: Work, again: Callable[[Part], Verification], source: str) -> str:
    """One kind of step after the other: a whole kind is checked before it is bisected."""

    def passes(steps: int) -> bool:
        return again(work.part(steps)).status != "failed"

    words, good = work.words(), 0
    ends = [len(work.folds), len(work.folds) + len(work.merges)]
    ends += range(ends[-1] + 1, len(words) + 1)
    try:
        if source and not passes(0):
            return source
        for end in ends:
            if end > good and (end == len(words) or not passes(end)):
                return words[first_bad(end, passes, good) - 1]
            good = end
    except BnfoldError:
        return "which fold broke it could not be found out"
    return source or "nothing was changed"


def first_bad(bad: int, check: Callable[[int], bool], good: int = 0) -> int:
    """Which step broke a model: the length of the shortest failing prefix of the work, by bisection.

    The last step of that prefix is to blame. `check(k)` tells whether the model with only the first k steps
    passes. check(good) is taken to pass (0 steps: the original against itself) and check(bad) to fail;
    neither is called. It takes about log2(bad - good) checks.
    """
    if bad <= good:
        raise ValueError("without folds none can be bad")
    while bad - good > 1:
        middle = (good + bad) // 2
        if check(middle):
            good = middle
        else:
            bad = middle
    return bad
