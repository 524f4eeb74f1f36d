"""Saving a model: in one file or with a data file beside it, whole at every moment, nothing left over."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from mmap import ACCESS_READ, mmap
from pathlib import Path

from bnfold.errors import ModelError
from bnfold.onnx_graph.file.data_file import DataFile, locations_of
from bnfold.onnx_graph.file.loaded import LARGEST, Loaded, load
from bnfold.onnx_graph.file.whole_files import Output, check_target


def save(
    loaded: Loaded, path: str | Path, *, force: bool = False, external: bool | None = None
) -> list[Path]:
    """Write a model to a file: whole, or not at all. A model that was not edited is written byte for byte.

    Args:
        loaded: the model; it stays as it is.
        path: the file to write.
        force: replace the file at `path`, which may be the one that the model came from.
        external: whether large tensors go into a data file, `<name>.data` beside the model (with more letters
            if that is taken); None: if some were in one. A data file that bnfold wrote for the model that is
            replaced is removed.

    Returns:
        The files that the model is in: its data file, if it has one, and the model last.

    Returns:
        The files that were written: a data file, if there is one, and the model last.

    Raises:
        UsageError: there is no such folder, or something is at `path` already.
        ModelError: a tensor's data cannot be read, or are too large for one file.
        BnfoldError: the system refuses, because the disk is full, say.
    """
    path = Path(path)
    check_target(path, force)
    external = loaded.is_external if external is None else external
    before = _own_data(path)
    after: set[str] = set()
    written = [path]
    with Output() as output:
        if not external:
            chunks = loaded.inlined()
            if sum(map(len, chunks)) > LARGEST:
                raise ModelError(
                    f"{path}: over 2 GiB, too large for one file; save it with external data "
                    "(--save-as-external-data, external_data=True)"
                )
        elif loaded.is_external and not loaded.edited and _is_at(loaded, path):
            # (Elsewhere it would share data files with the original: to replace one would break the other.)
            chunks, after = list(loaded.chunks()), before
        else:
            name = _data_name(path)
            data_file = DataFile(loaded, name)
            if data_file:
                written.insert(0, path.with_name(name))
                output.write(written[0], data_file.chunks())
            chunks, after = loaded.serialized(data_file.proto), {name}
        output.write(path, chunks)
        output.commit()
    if before - after:
        if loaded.path is not None and loaded.path.absolute() != path.absolute():
            after |= locations_of(loaded.proto)
        _remove_unused(path, before - after)
    return written


def _is_at(loaded: Loaded, path: Path) -> bool:
    try:
        status = path.stat()
    except OSError:
        return False
    return loaded.inode == (status.st_dev, status.st_ino)


def _data_name(model: Path) -> str:
    """A free name for a data file beside `model`: an old pair must be whole until its model is replaced."""
    name = f"{model.name}.data"
    while os.path.lexists(model.with_name(name)):
        name = f"{model.name}-{secrets.token_hex(4)}.data"
    return name


def _own_data(model: Path) -> set[str]:
    """The data files that the model at this path refers to and that, by their names, were written with it."""
    ours = re.compile(re.escape(model.name) + r"(-[0-9a-f]{8})?\.data")
    try:
        names = {name for name in os.listdir(model.parent) if ours.fullmatch(name)}
        if not names or not model.is_file():
            return set()
        return names & locations_of(load(model).proto)
    except (OSError, ModelError):
        return set()


def _remove_unused(model: Path, names: set[str]) -> None:
    """Remove these data files beside `model`, but for those that another model there mentions."""
    for name in names:
        # Better too many files than too few.
        with contextlib.suppress(OSError):
            if not any(_mentions(other, name) for other in model.parent.iterdir() if other != model):
                model.with_name(name).unlink(missing_ok=True)


def _mentions(path: Path, name: str) -> bool:
    if ".onnx" not in path.name or path.suffix == ".data" or not path.is_file() or path.stat().st_size == 0:
        return False
    with open(path, "rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
        return content.find(name.encode()) >= 0
