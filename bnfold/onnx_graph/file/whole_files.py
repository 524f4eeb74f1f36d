"""Files that appear whole or not at all: written beside their targets, flushed to the disk, then renamed."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

from bnfold.errors import BnfoldError, UsageError

Bytes: TypeAlias = "bytes | memoryview"

# Bytes for one call of write: enough to keep the disk busy, and few enough to stay in a cache.
AT_ONCE = 1 << 19


def check_target(path: Path, force: bool, how: str = "force=True writes over it") -> None:
    """Refuse a path at which no file can or must be written. how: what a caller does to force it.

    Raises:
        UsageError: no such folder, or something is there that `force` does not cover.
    """
    try:
        path.name.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{path} has a name that is not UTF-8; choose another") from None
    try:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.lstat(path)  # which, unlike Path's questions, does not answer them with a mere no
        if not path.parent.is_dir():
            raise UsageError(f"there is no folder {path.parent} to write {path.name} into; make it first")
        if path.is_dir():
            raise UsageError(f"{path} is a folder; name a file in it")
        if os.path.lexists(path):
            if not force:
                raise UsageError(f"{path} exists already; {how}, or name another file")
            if path.exists() and not path.is_file():
                raise UsageError(f"{path} is not a regular file; name another one")
    except (OSError, ValueError) as error:  # no permission to ask, a name too long, a zero byte in it
        raise UsageError(f"{path}: cannot be written: {getattr(error, 'strerror', None) or error}") from None


class Output:
    """Some files that belong together. Those not committed when the block ends, however it ends, are removed.

    with Output() as output:
        output.write(data_path, ...)
        output.write(model_path, ...)  # the one that makes the others matter comes last
        output.commit()

    Raises (from each step):
        BnfoldError: the system refuses: the disk is full, no permission.
    """

    def __init__(self) -> None:
        self._parts: list[tuple[Path, Path]] = []
        self._placed: list[Path] = []
        self._done = False

    def __enter__(self) -> Output:  # noqa: PYI034 - typing has Self from Python 3.11 on
        return self

    def write(self, target: Path, chunks: Iterable[Bytes]) -> None:
        """Write all but the last step: the file has another name yet."""
        # Known before the file exists, so that an interruption between the two leaves nothing behind.
        part = target.with_name(f".bnfold-{secrets.token_hex(8)}.part")
        self._parts.append((part, target))
        try:
            handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
            try:
                if target.is_file():
                    os.chmod(part, stat.S_IMODE(target.stat().st_mode))
                for chunk in _even(chunks):
                    while chunk:
                        chunk = chunk[os.write(handle, chunk) :]
                os.fsync(handle)
            finally:
                os.close(handle)
        except OSError as error:
            raise _refused(target, error) from None

    def commit(self) -> None:
        """Give the files their names, in the order in which they were written."""
        for part, target in self._parts:
            try:
                if not os.path.lexists(target):
                    self._placed.append(target)
                os.replace(part, target)
            except OSError as error:
                raise _refused(target, error) from None
        self._done = True
        for folder in {target.parent for _, target in self._parts}:
            _flush_folder(folder)

    def __exit__(self, *_: object) -> None:
        if self._done:
            return
        parts = [part for part, _ in self._parts]
        # If the last rename is done (we were interrupted right behind it), what was placed before it is in
        # use.
        placed = self._placed if parts and os.path.lexists(parts[-1]) else []
        for path in (*parts, *placed):
            with contextlib.suppress(OSError):  # the disk that failed may be gone as a whole
                path.unlink(missing_ok=True)


def _refused(target: Path, error: OSError) -> BnfoldError:
    return BnfoldError(f"{target}: cannot be written: {error.strerror or error}")


def _even(chunks: Iterable[Bytes]) -> Iterator[memoryview]:
    """The same bytes in pieces of about AT_ONCE: small ones joined, large ones split (and not copied)."""
    small: list[Bytes] = []
    size = 0
    for chunk in chunks:
        if len(chunk) < AT_ONCE // 4:
            small.append(chunk)
            size += len(chunk)
            if size < AT_ONCE:
                continue
        if small:
            yield memoryview(b"".join(small))
            small, size = [], 0
        if len(chunk) >= AT_ONCE // 4:
            view = memoryview(chunk)
            for at in range(0, len(view), AT_ONCE):
                yield view[at : at + AT_ONCE]
    if small:
        yield memoryview(b"".join(small))


def _flush_folder(folder: Path) -> None:
    """Make the renames last through a power cut, where the system knows how."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
