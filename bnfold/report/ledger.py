"""The ledger in words: one line for each batch norm, or those that stay by their reasons, and a count."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from bnfold.report.table import counted, first, table

__all__ = ["AT_ONCE", "SHOW", "Entry", "ledger"]

SHOW = ("all", "kept", "summary")
AT_ONCE = 16  # batch norms: no more than that are listed one by one unless that is asked for
NAMES = 4  # of a group that are told


class Entry(NamedTuple):
    """One batch norm, or one other affine node that was looked at.

    outcome: "folded" (the node is gone) or "kept". into: names of the nodes whose weights absorbed it (of one
    that changes nothing: a neighbour).
    reason: why it was kept, or how it was folded. blocked_by: the node or tensor that stopped it. cure: what
    would let it go, or "". dead_channels: those whose output never changes (scale 0, or running variance 0).
    """

    name: str
    op: str
    outcome: str
    into: tuple[str, ...] = ()
    reason: str = ""
    blocked_by: str = ""
    cure: str = ""
    dead_channels: tuple[int, ...] = ()


def ledger(entries: Sequence[Entry], show: str) -> Iterator[str]:
    """Lines: all entries, those kept first; or only these, by reason; or none. Then how many there are."""
    kept = [entry for entry in entries if entry.outcome == "kept"]
    folded = [entry for entry in entries if entry.outcome == "folded"]
    if show == "all":
        rows = [("name", "op", "outcome", "into / why")]
        rows += [(e.name, e.op, e.outcome, _story(e)) for e in (*kept, *folded)]
        yield from table(rows)
    elif show == "kept":
        yield from _grouped(kept)
        if folded:
            into = list(dict.fromkeys(name for entry in folded for name in entry.into))
            yield f"folded into {counted(len(into), 'node')}: {first(into, NAMES)}"
    yield f"{len(folded)} folded, {len(kept)} kept"


def _story(entry: Entry) -> str:
    if entry.outcome == "folded":
        return first(entry.into, 3)
    where = f"{entry.blocked_by}: " if entry.blocked_by else ""
    return where + entry.reason + (f" ({entry.cure})" if entry.cure else "")


def _grouped(kept: Sequence[Entry]) -> Iterator[str]:
    """Reasons with how many batch norms they keep, the most frequent first, and some of their names."""
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in kept:
        groups.setdefault((_anywhere(entry), entry.cure), []).append(entry)
    for (reason, cure), group in sorted(groups.items(), key=lambda item: -len(item[1])):
        yield f"kept {len(group)}: {reason}"
        if cure:
            yield f"  cure: {cure}"
        for entry in group[:NAMES]:
            yield f"  {entry.name}{f', by {entry.blocked_by}' if entry.blocked_by else ''}"
        if len(group) > NAMES:
            yield f"  and {len(group) - NAMES} more"


def _anywhere(entry: Entry) -> str:
    """The reason without the names of the nodes that it is about, where it has one for each way."""
    places = entry.blocked_by.split(", ")
    for at in range(len(places)):  # the name of a node may hold a comma
        back = ", ".join(places[: at + 1])
        forward = ", ".join(places[at + 1 :]) or back
        begin, middle = f"backward, {back}: ", f"; forward, {forward}: "
        if entry.reason.startswith(begin) and middle in entry.reason:
            return "backward: " + entry.reason[len(begin) :].replace(middle, "; forward: ", 1)
    return entry.reason
