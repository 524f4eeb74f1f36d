"""TensorRT comes as several packages with the same interface: which of them is installed?"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType

from bnfold.errors import UsageError, first_line

__all__ = ["FLAVOURS", "Flavour", "find"]


@dataclass(frozen=True)
class Flavour:
    """One package. builds: whether it has a builder, or only runs what was built; installs: how to get it."""

    module: str
    builds: bool
    installs: str


# The first that is installed is taken.
FLAVOURS = (
    Flavour("tensorrt", True, "pip install tensorrt"),
    Flavour("tensorrt_rtx", True, "pip install tensorrt-rtx"),
    Flavour(
        "tensorrt_lean_bindings",
        False,
        "pip install --no-deps tensorrt-lean-cu13-libs tensorrt-lean-cu13-bindings",
    ),
)


def find(*, build: bool) -> ModuleType:
    """The first of `FLAVOURS` that is installed.

    Args:
        build: only those that build engines; without it also those that have no more than a runtime and its
            registry of plugins.

    Raises:
        UsageError: none is; the text says what to install, and why one that is there does not load.
    """
    wanted = [flavour for flavour in FLAVOURS if flavour.builds or not build]
    broken = []
    for flavour in wanted:
        try:
            module = importlib.import_module(flavour.module)
        except Exception as error:  # of any kind: they load shared libraries, which fail in many ways
            absent = isinstance(error, ModuleNotFoundError) and error.name == flavour.module
            if not absent:  # it is there, but what it needs is not, say
                broken.append(f"{flavour.module} is installed, but does not load: {first_line(error)}")
        else:
            if hasattr(module, "get_plugin_registry"):  # else it is just a folder of that name
                return module
    names = ", ".join(flavour.module for flavour in wanted)
    ways = ", or ".join(flavour.installs for flavour in wanted)
    raise UsageError("\n".join([f"no TensorRT is found (looked for {names}): {ways}", *broken]))
