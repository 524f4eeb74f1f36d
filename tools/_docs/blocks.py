"""The blocks of code in the pages: commands and programs, and what a page says that they print."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

__all__ = ["Block", "Command", "blocks_of", "commands_of", "missing", "printed_by"]


@dataclass(frozen=True)
class Block:
    """One fenced block; `marker`: the comment on the line before it, which says why it is not run.

    section: the heading of second rank that it stands below.
    """

    page: Path
    line: int
    language: str
    marker: str
    text: str
    section: str = ""

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


class Command(NamedTuple):
    """A command of a console block, and the lines that the page shows below it."""

    line: str
    wanted: list[str]


def blocks_of(page: Path) -> list[Block]:
    """All of a page, in order."""
    found = []
    text = page.read_text(encoding="utf-8")
    for match in re.finditer(r"(?:^<!-- (.*) -->\n)?^```(.*)\n((?:.*\n)*?)^```$", text, re.MULTILINE):
        before = text[: match.start(2)]
        sections = re.findall(r"^## (.*)$", before, re.MULTILINE)
        line = before.count("\n") + 1
        found.append(Block(page, line, match[2], match[1] or "", match[3], sections[-1] if sections else ""))
    return found


def commands_of(block: Block) -> Iterator[Command]:
    """Of a console block."""
    first, *rest = re.split(r"^\$ ", block.text, flags=re.MULTILINE)
    assert not first, f"{block}: output without a command"
    for part in rest:
        command, *wanted = part.splitlines()
        yield Command(command, wanted)


def printed_by(program: str) -> list[str]:
    """What the comments behind (and right below) the `print` calls of a program say."""
    wanted, printing = [], False
    for line in program.splitlines():
        code, *comment = re.split(r"(?:^|\s+)# ", line, maxsplit=1)
        printing = "print(" in code or (printing and not code.strip())
        if printing:
            wanted += comment
    return wanted


def missing(wanted: Sequence[str], output: str) -> str:
    """The first shown line that does not occur in the output, behind those before it; "" if all do."""
    lines = iter(output.splitlines())
    for line in wanted:
        if line.strip() in ("", "..."):
            continue
        if not any(_shown(line).fullmatch(got.strip()) for got in lines):
            return line
    return ""


def _shown(text: str) -> re.Pattern[str]:
    """A shown line as a pattern: dots stand for anything, measured numbers and versions for any others."""
    known = {
        r"\.\.\.": ".*",
        r"\d+(?:\.\d+)*e[-+]\d+|\d+(?:\.\d+)+": r"\d+(?:\.\d+)*(?:e[-+]?\d+)?",
        r"\s+": r"\s+",
    }
    made = ""
    for part in re.split(f"({'|'.join(known)})", text.strip()):
        made += next((to for kind, to in known.items() if re.fullmatch(kind, part)), re.escape(part))
    return re.compile(made)
