"""New weights of large models, kept in a mapped file rather than in memory until they are written."""

from __future__ import annotations

import tempfile

import numpy as np

from bnfold.fold.graph import Edit, SetValue

__all__ = ["HELD", "Spill"]

HELD = 1 << 28  # bytes of new weights that may stay in memory
SMALL = 1 << 20  # smaller ones always do


class Spill:
    """Call it with each edit: beyond `HELD` bytes values move to a nameless temporary file."""

    def __init__(self, held: int = HELD) -> None:
        self.left = held

    def __call__(self, edit: Edit) -> Edit:
        """The edit, its value in memory or mapped."""
        if isinstance(edit, SetValue) and edit.value.nbytes >= SMALL:
            self.left -= edit.value.nbytes
            if self.left < 0:
                with tempfile.TemporaryFile() as file:
                    mapped = np.memmap(file, edit.value.dtype, "w+", shape=edit.value.shape)
                mapped[...] = edit.value
                mapped.flush()
                edit.value = mapped
        return edit
