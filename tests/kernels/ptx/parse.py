"""Reads the PTX of one kernel: its parameters, its registers, its instructions one by one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

SIZES = {"8": 1, "16": 2, "32": 4, "64": 8}  # bytes, by the digits of a type
_NAME = r"[\w$%]+"
_ENTRY = re.compile(r"\.entry (\S+?)\s*\((.*?)\)(.*?)\n\{\n(.*?)\n\}", re.DOTALL)
_PARAMETER = re.compile(r"\.param\s+\.(\w+)\s+(?:\.ptr\s+(?:\.\w+\s+(?:\d+\s+)?)*)?(\w+)")
_REGISTERS = re.compile(rf"\.reg\s+\.(\w+)\s+({_NAME})(?:<(\d+)>)?;")
_VALUE = re.compile(r"\.(?:global|const)\s+\.align\s+\d+\s+\.\w+\s+(\S+)\s*=\s*(-?\d+);")
_SHARED = re.compile(r"\.extern\s+\.shared\s+\.align\s+\d+\s+\.b8\s+(\w+)\[\];")
_GUARD = re.compile(rf"^@(!?)({_NAME})\s+(.*)$", re.DOTALL)
_OPERAND = re.compile(r"\s*(\{[^}]*\}|\[[^\]]*\]|[^,{\[]+)")
_IGNORED = (".loc ", ".loc\t", ".pragma")


class PtxError(Exception):
    """What this translation does not know, with the line of the PTX."""


@dataclass(frozen=True)
class Instruction:
    """One instruction. guard: the predicate under which it runs, "!%p1", or nothing."""

    line: int
    guard: str
    opcode: str
    operands: tuple[str, ...]

    @property
    def words(self) -> list[str]:
        """Those of the opcode: "ld", "global", "v4", "u32"."""
        return self.opcode.split(".")

    def __str__(self) -> str:
        return f"line {self.line}: {self.opcode} {', '.join(self.operands)}"


@dataclass(frozen=True)
class Label:
    name: str


@dataclass(frozen=True)
class Registers:
    """Declared together: name, or %r0 to %rN-1 where there is a count."""

    type: str
    name: str
    count: int | None


@dataclass(frozen=True)
class Scope:
    """A brace."""

    text: str


Item = Instruction | Label | Registers | Scope


@dataclass(frozen=True)
class Entry:
    """One kernel. values: constants of the module. shared: names that stand for dynamic shared memory."""

    name: str
    parameters: dict[str, str]
    items: list[Item]
    values: dict[str, int]
    shared: frozenset[str]


def parsed(text: str) -> Entry:
    """The one kernel of a module.

    Raises:
        PtxError: there is none, or a line cannot be read.
    """
    found = _ENTRY.search(text)
    if found is None:
        raise PtxError("no .entry")
    name, parameters, _, body = found.groups()
    first = text.count("\n", 0, found.start(4)) + 1
    return Entry(
        name=name,
        parameters={each: kind for kind, each in _PARAMETER.findall(parameters)},
        items=list(_items(body, first)),
        values={each: int(value) for each, value in _VALUE.findall(text)},
        shared=frozenset(_SHARED.findall(text)),
    )


def _items(body: str, first: int) -> Iterator[Item]:
    for number, line in enumerate(body.splitlines(), first):
        rest = re.sub(r"//.*", "", line).strip()
        while rest:
            if rest[0] in "{}":
                yield Scope(rest[0])
                rest = rest[1:].strip()
                continue
            label = re.match(rf"({_NAME}):\s*", rest)
            if label:
                yield Label(label.group(1))
                rest = rest[label.end() :]
                continue
            one, end, rest = rest.partition(";")
            if not end:
                raise PtxError(f"line {number}: {line.strip()}")
            rest = rest.strip()
            if not one.startswith(_IGNORED):
                yield _item(one.strip(), number)


def _item(text: str, number: int) -> Item:
    declared = _REGISTERS.match(text + ";")
    if declared:
        kind, name, count = declared.groups()
        return Registers(kind, name, int(count) if count else None)
    if text.startswith("."):
        raise PtxError(f"line {number}: {text}")
    guard = ""
    guarded = _GUARD.match(text)
    if guarded:
        guard, text = guarded.group(1) + guarded.group(2), guarded.group(3)
    opcode, _, rest = text.partition(" ") if " " in text else text.partition("\t")
    operands = tuple(each.strip() for each in _OPERAND.findall(rest.strip()) if each.strip())
    return Instruction(number, guard, opcode.strip(), operands)
