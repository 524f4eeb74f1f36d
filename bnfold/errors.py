"""What goes wrong, for people: `str(error)` is a whole message, one that says what, where, and what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PARAGRAPH = 500  # characters of what others say
LONGEST = 300, 3000  # characters of a word, a model's name say, and of a message


class BnfoldError(Exception):
    """Anything bnfold gives up on; also raised itself, where the system refuses (a full disk)."""

    def __str__(self) -> str:
        return shortened(super().__str__())


class ModelError(BnfoldError):
    """The model, or a file that belongs to it, cannot be used."""


class UsageError(BnfoldError):
    """An argument is wrong: an unknown name, a file that must not be overwritten."""


class VerifyError(BnfoldError):
    """The folded model does not compute what the original does; nothing was written.

    report: of what was done and of the check, if there is one.
    """

    report: Any = None


@contextmanager
def explained(said: str, advice: str = "") -> Iterator[None]:
    """Run code of others, the user's or a package's; what it raises is told with what failed, and advice."""
    try:
        yield
    except Exception as error:  # of any kind: nobody knows what such code raises
        raise UsageError(f"{said}: {first_paragraph(error)}\n{advice}".rstrip()) from error


def shortened(text: str) -> str:
    """A message without the middle of its very long words: a damaged model's names have any length."""
    word, whole = LONGEST
    if len(text) <= word:
        return text
    text = re.sub(rf"\S{{{word + 1},}}", lambda found: _ends(found.group(), word), text)
    return _ends(text, whole)


def _ends(text: str, size: int) -> str:
    return text if len(text) <= size else f"{text[: size // 2]} … {text[-size // 2 :]}"


def first_line(error: BaseException) -> str:
    """What an error says, without its pages of context."""
    return next((line.strip() for line in _plain(error).splitlines() if line.strip()), type(error).__name__)


def first_paragraph(error: BaseException) -> str:
    """What an error says and suggests, as far as its first empty line."""
    said = _plain(error).strip().partition("\n\n")[0].rstrip()
    return _ends(said, PARAGRAPH) or type(error).__name__


def _plain(error: BaseException) -> str:
    """Without what would colour a terminal."""
    return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", str(error))
