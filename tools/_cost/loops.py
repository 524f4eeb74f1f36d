"""The loops of a kernel by what they do with memory, and what each costs for a vector.

    fill     copies activations into shared memory, and does nothing else
    load     reads the activations, and stages them in shared memory; or copies and sums them
    sweep    sums what is staged, once more
    write    writes the result of what is staged
    again    reads the activations once more, and writes
    restage  reads them once more into shared memory, for a loop that writes
    stream   reads and writes, of a kernel that stages nothing
    ring     writes one unit, copies the next one in, and sums what has arrived, in one loop

Where units pass through a ring that does not hold them, each loop but a sweep copies as well: those are
`load`, `write`, and `again`, which waits for what was copied once more.

A way through a loop depends on what follows the batch norm: `alone`, `relu` or `add_relu`; `apply` can note
a mask as well, `masked`, which evaluation does not ask for. Of all ways through a loop that treat as many
vectors as it can, the shortest that does what is asked for is taken.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from tools._cost import flow
from tools._cost.flow import Key, Loop
from tools._cost.pipes import Count, counted
from tools._cost.sass import Instruction

FUSIONS = ("alone", "relu", "add_relu", "masked")
ROLES = ("fill", "load", "sweep", "write", "again", "restage", "stream", "ring")
BACKWARD = ("backward", "apply_backward")
_NAME = re.compile(r"bnfold::(\w+)<(.*)>")


@dataclass(frozen=True)
class Kernel:
    """What an instance's name says of it. width: values of a vector."""

    kernel: str
    type: str
    width: int
    layout: str
    exchange: str

    @property
    def read(self) -> int:
        """Tensors that a pass reads, without a residual."""
        return 2 if self.kernel in BACKWARD else 1


def named(name: str) -> Kernel:
    """An instance by its C++ name."""
    found = _NAME.fullmatch(name)
    if found is None:
        raise ValueError(f"{name} is no kernel of bnfold")
    arguments = [each.strip() for each in found[2].split(",")]
    words = {each.split("::")[1]: each.split("::")[2] for each in arguments if each.count("::") == 2}
    width = next(int(each) for each in arguments if each.isdigit())
    return Kernel(found[1], arguments[0], width, words["Layout"], words.get("Exchange", ""))


@dataclass(frozen=True)
class Role:
    """A loop, what it is, and its ways by their keys."""

    role: str
    loop: Loop
    ways: dict[Key, list[int]]


# What decides between the ways of a loop: vectors stored to global memory (and those that a predicate may
# switch off), vectors stored to shared memory, vectors loaded from global memory (likewise), vectors and
# values loaded from shared memory, bytes of a mask stored or loaded, comparisons.
_STORED, _STORED_IF, _STAGED, _LOADED, _LOADED_IF, _TAKEN, _VALUES, _MASKED, _COMPARED = range(9)
_COMPARE = ("FSETP", "FSET", "FMNMX", "FMNMX3", "HSETP2", "HSET2", "HMNMX2", "FSEL", "VIMNMX")


def key(each: Instruction) -> Key:
    wide = each.bits == 128
    return (
        int(each.name == "STG" and wide and not each.guard),
        int(each.name == "STG" and wide and bool(each.guard)),
        int(each.name == "LDGSTS" or (each.name == "STS" and wide)),
        int(each.name == "LDG" and wide and not each.guard),
        int(each.name == "LDG" and wide and bool(each.guard)),
        int(each.name == "LDS" and wide and not each.guard),
        int(each.name == "LDS" and not wide),
        int(each.name in ("STG", "LDG") and each.bits == 8 and not each.guard),
        int(each.name in _COMPARE or "RELU" in each.qualifiers),
    )


def key_of_sums(each: Instruction) -> Key:
    """Of a loop that writes nothing: its comparisons do not count, its sums do."""
    return (*key(each)[:_COMPARED], int(each.name in _SUM))


_SUM = ("FADD", "FFMA", "HADD2", "HFMA2", "FADD2", "FFMA2")


def roles(code: Sequence[Instruction], kernel: Kernel) -> list[Role]:
    """The loops over vectors, in order."""
    found: list[Role] = []
    for loop in (each for top in flow.loops(code) for each in top.all() if not each.inner):
        body = code[loop.first : loop.last + 1]
        role = _role(
            body, kernel, any(each.role == "load" and each.loop.depth < loop.depth for each in found)
        )
        if role:
            found.append(Role(role, loop, flow.ways(code, loop, key_of_sums if role == "sweep" else key)))
    # Where some loads sum what they stage, others stage once more what the sums are known of.
    summing = {each.loop.first: _sums(code[each.loop.first : each.loop.last + 1]) for each in found}
    if kernel.layout != "planes" and any(summing[each.loop.first] for each in found if each.role == "load"):
        found = [
            replace(each, role="restage") if each.role == "load" and not summing[each.loop.first] else each
            for each in found
        ]
    return found


def _sums(body: Sequence[Instruction]) -> int:
    return sum(each.name in _SUM for each in body)


def _role(body: Sequence[Instruction], kernel: Kernel, inside: bool) -> str | None:
    """What a loop is, if it is one over vectors. inside: it lies deeper than a loop that loads."""
    total = [sum(column) for column in zip(*map(key, body), strict=True)]
    copies, sums = any(each.name == "LDGSTS" for each in body), _sums(body)
    if total[_STORED] + total[_STORED_IF]:
        if kernel.exchange == "long_ring":
            return "again" if any(each.name == "DEPBAR" for each in body) else "write"
        return "ring" if copies else _written(total, kernel)
    if copies:
        return "load" if sums else "fill"
    if total[_STAGED] and total[_LOADED] + total[_LOADED_IF]:
        return "load"
    # A sum or more for each value, of this thread's: what merges sets of others does it by shuffles.
    merges = any(each.name == "SHFL" for each in body)
    if total[_TAKEN] and sums >= kernel.width * total[_TAKEN] and not merges:
        return "sweep"
    value = 32 if kernel.type == "float" else 16
    by_value = kernel.layout == "planes" and any(each.name == "LDS" and each.bits == value for each in body)
    return "sweep" if by_value and sums and inside else None


def _written(total: Sequence[int], kernel: Kernel) -> str:
    if kernel.kernel.startswith("apply"):
        return "stream"
    # What is at hand comes from shared memory; a residual may be loaded as well.
    return "write" if total[_TAKEN] or not total[_LOADED] else "again"


def costs(code: Sequence[Instruction], kernel: Kernel) -> dict[str, dict[str, Count]]:
    """What each loop costs for a vector, by what it does, and then by what follows the batch norm."""
    found: dict[str, dict[str, Count]] = {}
    known = roles(code, kernel)
    for role in ROLES:
        same = [each for each in known if each.role == role]
        for fusion in FUSIONS if kernel.kernel == "apply" else FUSIONS[:-1]:
            if each := _cost(code, kernel, same, fusion):
                found.setdefault(role, {})[fusion] = each
    return found


def _cost(code: Sequence[Instruction], kernel: Kernel, same: Sequence[Role], fusion: str) -> Count | None:
    """That of all loops of one role together: sweeps follow each other, others stand for each other."""
    value = 32 if kernel.type == "float" else 16
    of_values = (128, value) if kernel.layout == "planes" else (128, 64, value)
    added = fusion in ("add_relu", "masked")
    made = [(role, _way(kernel, role, fusion)) for role in same]
    made = [(role, found) for role, found in made if found.vectors]
    if not made:
        return None
    counts = [
        counted(
            [code[i] for i in found.way],
            code[role.loop.first : role.loop.last + 1],
            found.vectors,
            of_values,
            added,
        )
        for role, found in made
    ]
    if same[0].role == "sweep" and kernel.layout == "planes":
        return _sum(counts)
    # Variants that do best what is asked for. The first lies before those for what it leaves over.
    best = min(found.off for _, found in made)
    chosen = [i for i, (_, found) in enumerate(made) if found.off == best]
    chosen = [i for i in chosen if made[i][1].vectors >= made[chosen[0]][1].vectors]
    # Without anything behind it, a loop that knows of nothing is taken: the shortest.
    alone = fusion == "alone"
    return counts[min(chosen, key=lambda i: (made[i][1].compared, len(made[i][1].way) if alone else 0))]


def _sum(counts: Sequence[Count]) -> Count:
    return Count(
        **{field.name: sum(getattr(count, field.name) for count in counts) for field in fields(Count)}
    )


@dataclass(frozen=True)
class Way:
    """A way through a loop. off: how far it is from what is asked for; compared: likewise, of a ReLU's
    comparisons.
    """

    off: tuple[float, ...]
    compared: float
    way: list[int]
    vectors: float


def _way(kernel: Kernel, role: Role, fusion: str) -> Way:
    """The one to take."""
    tensors, added = kernel.read, fusion in ("add_relu", "masked")
    noted = added and (kernel.kernel != "apply" or fusion == "masked")
    backward = kernel.kernel in BACKWARD
    most = [max(column) for column in zip(*role.ways, strict=True)]
    always = _STORED if most[_STORED] else _STORED_IF  # a store that a predicate guards for another reason
    if role.role in ("load", "restage", "ring"):
        whole = most[_STAGED] / tensors
    elif role.role == "sweep":
        whole = most[_TAKEN] / tensors or most[_VALUES] / tensors / kernel.width
    elif not backward:
        whole = most[always]
    elif role.role in ("again", "stream") and kernel.exchange != "long_ring":
        whole = most[_LOADED] / tensors
    elif most[_TAKEN] >= tensors:
        whole = most[_TAKEN] / tensors
    else:  # values one by one: the second store is the residual's
        whole = most[always] if most[_STORED_IF] else max(1, most[always] // 2)

    def rank(way: Key) -> tuple[float, ...]:
        """The smaller the better: whole turns, then what is asked for."""
        if role.role in ("load", "restage"):
            short = most[_STAGED] - way[_STAGED]
        elif role.role == "sweep":
            return (sum(most) - sum(way),)
        else:
            split = added and backward and not most[_STORED_IF]
            short = abs(way[always] - whole * (2 if split else 1))
        if kernel.exchange == "long_ring":  # a whole turn is read, and another one takes its place
            short += most[_STAGED] - way[_STAGED]
            short += most[_TAKEN] - way[_TAKEN] if role.role == "write" else 0
        loads, notes = way[_LOADED] / whole, way[_MASKED] / whole
        return (short, -loads if added else loads, -notes if noted else notes)

    def compared(way: Key) -> float:
        """Comparisons of a vector: with a ReLU the most, without one the fewest."""
        each = way[_COMPARED] / whole if whole else 0
        return -each if fusion == "relu" else 0 if added else each

    # Forward's ReLU is a selection on the same way; in backward it may be found again from x on a longer one.
    def order(way: Key) -> tuple[float, ...]:
        return (*rank(way), compared(way) if backward else 0, len(role.ways[way]))

    chosen = min(role.ways, key=order) if whole else next(iter(role.ways))
    if not whole:
        return Way((), 0, [], 0)
    # Loads that may be switched off tell a loop with a residual from one without.
    maybe = chosen[_LOADED_IF] / whole
    off = (*rank(chosen), -maybe if added else maybe)
    return Way(off, compared(chosen), role.ways[chosen], whole)
