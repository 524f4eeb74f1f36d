"""Which pipe of a multiprocessor executes an instruction, and what a way through a loop asks of each.

A scheduler issues one instruction a cycle. A pipe takes a warp's instruction in as many cycles as `CYCLES`
says, for each of the four schedulers; the numbers are those of the CUDA C++ Programming Guide's table of
arithmetic throughput (results a cycle and multiprocessor), as 128 over results.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from tools._cost.sass import Instruction

# Not here: what only takes an issue slot, such as branches, barriers and the uniform registers' own.
PIPES = {
    "alu": (
        "PRMT LOP LOP3 SHF SHL SHR IADD IADD3 IADD32I VIADD VIADDMNMX ISETP ISET FSETP FSET FSEL SEL LEA"
        " FMNMX FMNMX3 VIMNMX IMNMX PLOP3 F2FP HSETP2 HSET2 HMNMX2 P2R R2P IABS BMSK SGXT VOTE MOV I2FP F2IP"
    ),
    "fma": "FADD FFMA FMUL FADD2 FFMA2 FMUL2 HADD2 HFMA2 HMUL2 FSWZADD",
    "imad": "IMAD",
    "fp64": "DADD DFMA DMUL DSETP DMNMX",
    "xu": "MUFU F2F F2I I2F FRND POPC FLO BREV",
    "memory": "LDG STG LD ST LDS STS LDGSTS ATOMG ATOM RED ATOMS SHFL LDSM CCTL",
}
PIPE_OF = {name: pipe for pipe, names in PIPES.items() for name in names.split()}

# Cycles of a scheduler for a warp's instruction, by compute capability. The memory pipe is one for all four.
CYCLES = {
    (7, 5): {"alu": 2, "fma": 2, "imad": 2, "fp64": 64, "xu": 8, "memory": 4},
    (8, 0): {"alu": 2, "fma": 2, "imad": 2, "fp64": 4, "xu": 8, "memory": 4},
    (8, 9): {"alu": 2, "fma": 1, "imad": 2, "fp64": 64, "xu": 8, "memory": 4},
    (9, 0): {"alu": 2, "fma": 1, "imad": 2, "fp64": 2, "xu": 8, "memory": 4},
}
LINE = 128  # bytes that shared memory, or the first-level cache, gives or takes in one cycle
WARP = 32


@dataclass(frozen=True)
class Count:
    """What a warp executes for each of its vectors: 32 vectors of 16 bytes.

    issue: instructions; alu ... memory: those of each pipe. shared, through: wavefronts of shared memory,
    and of global memory through the first-level cache. in_flight: loads of a thread that are under way at
    one time.
    """

    issue: float = 0
    alu: float = 0
    fma: float = 0
    imad: float = 0
    fp64: float = 0
    xu: float = 0
    memory: float = 0
    shared: float = 0
    through: float = 0
    in_flight: float = 0

    def shown(self) -> dict[str, float]:
        return {name: round(value, 2) for name, value in asdict(self).items() if value}


def counted(
    way: Sequence[Instruction],
    body: Sequence[Instruction],
    vectors: float,
    of_values: Sequence[int],
    residual: bool,
) -> Count:
    """What a way through a loop, of so many vectors, costs for each of them.

    body: the whole loop. of_values: bits of an access to shared memory that reads values. residual: whether
    what a predicate switches off where there is no residual happens: accesses like which the loop has
    others that are always made.
    """
    always = {(each.name, each.bits) for each in body if not each.guard}
    by_vector = any(each.bits == 128 for each in body if each.name in _MEMORY)
    pipes = dict.fromkeys(PIPES, 0)
    shared = through = 0.0
    for each in way:
        if pipe := PIPE_OF.get(each.name):
            pipes[pipe] += 1
        wide = each.bits == 128
        optional = bool(each.guard) and (each.name, each.bits) in always
        if optional and not (residual and wide):
            continue
        if each.name in ("LDS", "STS"):
            # Values of a vector that are read one by one: lanes are 16 bytes apart. Other numbers are the
            # same for all.
            shared += wavefronts(each.bits, 16 if by_vector and each.bits in of_values else each.bits // 8)
        elif each.name in ("LDG", "STG", "LD", "ST"):
            through += wavefronts(each.bits, each.bits // 8)
        elif each.name == "LDGSTS":
            shared, through = shared + 4, through + 4
    per = {name: n / vectors for name, n in pipes.items()}
    return Count(
        issue=len(way) / vectors,
        shared=shared / vectors,
        through=through / vectors,
        in_flight=in_flight(way),
        **per,
    )


_MEMORY = ("LDG", "STG", "LDS", "STS", "LDGSTS")


def wavefronts(bits: int, apart: int) -> float:
    """Of one access by a warp, whose lanes are so many bytes apart."""
    return max(1.0, bits // 8 * WARP / LINE, WARP * apart / LINE)


def in_flight(way: Iterable[Instruction]) -> int:
    """Loads of 16 bytes that are asked for before the first of them is needed, at most."""
    waiting: list[tuple[str, ...]] = []
    most = 0
    for each in way:
        needed = {*each.read}
        waiting = [registers for registers in waiting if not needed & {*registers}]
        if each.name == "LDG" and each.bits == 128:
            waiting.append(each.written)
            most = max(most, len(waiting))
    return most
