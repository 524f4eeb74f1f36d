"""The four kinds of users: which pages each of them reads, and which extras these ask for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from tools._docs.blocks import Block, blocks_of

__all__ = ["ROOT", "USERS", "User", "is_played"]

ROOT = Path(__file__).resolve().parents[2]
ALL = ()


class User(NamedTuple):
    """extras: of bnfold. pages: of the repository, and the sections of each that are theirs; none: all."""

    extras: tuple[str, ...]
    pages: Mapping[str, tuple[str, ...]]

    def read(self, root: Path) -> Iterator[tuple[str, list[Block]]]:
        """Each page with the blocks that are to be typed along."""
        for page, sections in self.pages.items():
            blocks = filter(is_played, blocks_of(root / page))
            yield page, [block for block in blocks if not sections or block.section in sections]


USERS = {
    "export": User(
        ("onnxruntime", "torch", "ir"),
        {
            "README.md": ("Two commands", "Export"),
            "docs/command.md": ALL,
            "docs/export.md": ALL,
            "docs/python.md": ALL,
            "docs/check.md": ALL,
            "docs/proof.md": ALL,
        },
    ),
    "deploy": User(
        ("onnxruntime", "tensorrt-rtx"),
        {
            "README.md": ("Two commands", "Deploy on GPUs"),
            "docs/tensorrt.md": ALL,
            "docs/engines.md": ALL,
            "docs/precision.md": ALL,
        },
    ),
    "compress": User(
        ("onnxruntime", "torch", "compress"),
        {
            "README.md": ("Two commands", "Compress"),
            "docs/compression.md": ALL,
            "docs/int8.md": ALL,
            "docs/correct.md": ALL,
        },
    ),
    "train": User(
        ("onnxruntime", "torch"),
        {
            "README.md": ("Two commands", "Train"),
            "docs/training.md": ALL,
            "docs/kernels.md": ALL,
            "docs/integrations.md": ALL,
        },
    ),
}


def is_played(block: Block) -> bool:
    """Whether it is to be typed along; a marker says why not."""
    return block.language in ("console", "python") and not block.marker
