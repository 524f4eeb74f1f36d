"""What goes wrong, for people: `str(error)` is a whole message, one that says what, where, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class BnfoldError(Exception):
    """Anything bnfold gives up on; also raised itself, where the system refuses (a full disk)."""


class ModelError(BnfoldError):
    """The model, or a file that belongs to it, cannot be used."""


class UsageError(BnfoldError):
    """An argument is wrong: an unknown name, a file that must not be overwritten."""


class VerifyError(BnfoldError):
    """The folded model does not compute what the original does; nothing was written."""


@contextmanager
def explained(said: str, advice: str = "") -> Iterator[None]:
    """Run code of others, the user's or a package's; what it raises is told with what failed, and advice."""
    try:
        yield
    except Exception as error:  # of any kind: nobody knows what such code raises
        raise UsageError(f"{said}: {first_line(error)}\n{advice}".rstrip()) from error


def first_line(error: BaseException) -> str:
    """What an error says, without its pages of context."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
