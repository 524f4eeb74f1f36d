"""A kernel's machine code as instructions: NVIDIA's disassembler is asked, its text is read."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = (
    Path(__file__).resolve().parents[2]
)  # not tools._common's, which imports a package that may not be this one's
PINS = "tools/_setup/nvdisasm.txt"
FOLDER = ROOT / ".cache" / "nvdisasm"  # where tools/_setup/setup.sh puts what is pinned

_LABEL = re.compile(r"^\s*(\.L_x_\d+):")
_LINE = re.compile(r"^\s*/\*[0-9a-f]{4,6}\*/\s+(.*?)\s*;")
_GUARD = re.compile(r"^@(!?U?P\w+)\s+")
_TARGET = re.compile(r"`\((\.L_x_\d+)\)")
_REGISTER = re.compile(r"\b(U?R)(\d+)\b(\.64)?")


class NoDisassembler(RuntimeError):
    """It is not here; the text says how to get it."""


@dataclass(frozen=True)
class Instruction:
    """guard: the predicate that switches it off, or "". target: the instruction that it may go on at."""

    guard: str
    opcode: str
    operands: str
    target: int | None

    @cached_property
    def name(self) -> str:
        """The opcode without what qualifies it."""
        return self.opcode.partition(".")[0]

    @cached_property
    def qualifiers(self) -> frozenset[str]:
        return frozenset(self.opcode.split(".")[1:])

    @property
    def ends(self) -> bool:
        """Nothing follows: the thread ends or returns."""
        return self.name in ("EXIT", "RET") and not self.guard

    @property
    def leaves(self) -> bool:
        """It always goes on at its target."""
        always = not self.guard and self.operands.startswith("`(") and "DIV" not in self.qualifiers
        return self.name == "BRA" and always

    @property
    def bits(self) -> int:
        """What one thread reads or writes in memory, if it does."""
        return next((n for n in (128, 64, 16, 8) if {str(n), f"U{n}", f"S{n}"} & self.qualifiers), 32)

    @cached_property
    def written(self) -> tuple[str, ...]:
        """Registers that are known when it is done."""
        if (
            self.name in _WRITE_NOTHING
            or (first := _REGISTER.match(self.operands.lstrip("PT0123456789, "))) is None
        ):
            return ()
        kind, number, _ = first.groups()
        wide = "WIDE" in self.qualifiers or self.name in ("DADD", "DMUL", "DFMA", "F2F")
        count = self.bits // 32 if self.name in ("LDG", "LDS", "LD", "LDL") else 2 if wide else 1
        return tuple(f"{kind}{int(number) + i}" for i in range(max(1, count)))

    @cached_property
    def read(self) -> tuple[str, ...]:
        """Registers that it waits for; of wide ones the first."""
        skip = 0 if self.name in _WRITE_NOTHING else 1
        return tuple(f"{kind}{number}" for kind, number, _ in _REGISTER.findall(self.operands)[skip:])


_WRITE_NOTHING = (
    "STG", "STS", "ST", "LDGSTS", "BAR", "MEMBAR", "CCTL", "BRA", "EXIT", "RET", "ISETP", "FSETP", "DSETP",
)  # fmt: skip


@dataclass(frozen=True)
class Code:
    """A kernel: registers of a thread, and bytes that it spills or has on its stack."""

    instructions: tuple[Instruction, ...]
    registers: int
    spilled: int


def disassembler() -> Path:
    """NVIDIA's program.

    Raises:
        NoDisassembler: its wheel is not installed.
    """
    chosen = os.environ.get("BNFOLD_NVDISASM")
    places = [Path(chosen)] if chosen else [*FOLDER.glob("nvidia/cu*/bin/nvdisasm")]
    found = next((place for place in places if os.access(place, os.X_OK)), None)
    if found is None:
        raise NoDisassembler(
            f"there is no disassembler: pip install --no-deps --require-hashes --target {FOLDER} -r {PINS} "
            f"brings it (tools/kernel_cost and tools/test do that), or set BNFOLD_NVDISASM to an nvdisasm"
        )
    return found


def disassembled(cubin: bytes, log: str) -> Code:
    """What a compiled kernel holds. log: the assembler's, which counts registers and spills."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(disassembler()), "-c", "-ndf", file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    counts = re.findall(r"(\d+) bytes (?:stack frame|spill stores|spill loads)", log)
    registers = re.search(r"Used (\d+) registers", log)
    return Code(parsed(done.stdout), int(registers[1]) if registers else 0, sum(map(int, counts)))


def parsed(text: str) -> tuple[Instruction, ...]:
    """The instructions of a listing, in its order."""
    lines: list[str] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(lines)
        elif found := _LINE.match(line):
            lines.append(found[1])
    return tuple(_instruction(line, labels) for line in lines)


def _instruction(line: str, labels: dict[str, int]) -> Instruction:
    guard = _GUARD.match(line)
    rest = line[guard.end() :] if guard else line
    opcode, _, operands = rest.partition(" ")
    target = _TARGET.search(operands) if opcode.startswith("BRA") else None
    return Instruction(
        guard[1] if guard else "", opcode, operands.strip(), labels.get(target[1]) if target else None
    )
