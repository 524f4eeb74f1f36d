"""The plugin library: found, built if asked, and registered with the TensorRT that is installed."""

from __future__ import annotations

import ctypes
import os
import subprocess
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnfold.errors import UsageError, first_line
from bnfold.tensorrt import flavours
from bnfold.tensorrt.compile_plugin import LIBRARY, compile_plugin, kept

__all__ = ["NAMESPACE", "OPS", "VERSION", "Plugin", "load_plugin"]

NAMESPACE, VERSION = "bnfold", "1"  # of the creators
OPS = tuple(
    f"Bnfold{norm}{fused}"
    for norm in ("BatchNorm", "BatchStatNorm")
    for fused in ("", "Relu", "Add", "AddRelu")
)
OLDEST = 10  # major version of TensorRT: plugins of this kind are older in none
SYSTEM = ("/usr/local/lib", "/usr/lib", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu")
_CHECKOUT = Path(__file__).resolve().parents[2]  # where tools/build_plugin is, unless bnfold was installed


@dataclass(frozen=True)
class Plugin:
    """The plugin library in a registry.

    path: of the library, or None if something else registered its creators. creators: the ops that it makes.
    tensorrt: the package whose registry it is, with its version.
    """

    path: Path | None
    creators: tuple[str, ...]
    tensorrt: str


_RTX = (
    "TensorRT-RTX lists plugins but cannot import them: with this one registered, parsing a model that has "
    "its ops ends the process. Without it, TensorRT-RTX takes the functions in the model"
)
_loaded: dict[str, Path] = {}  # by TensorRT's module: what this process registered there


def load_plugin(path: str | os.PathLike[str] | None = None, *, build: bool = False) -> Plugin:
    """Registers the plugin library, so that TensorRT's parser and runtime find its ops; once is enough.

    TensorRT-RTX, which cannot import plugins, ends the process when it meets their ops: a warning says so.

    Args:
        path: the library. By default $BNFOLD_PLUGIN, then where it is put when it is built, then the folders
            in which the system looks for libraries.
        build: build it where it is not there; this takes minutes, and needs CMake, g++ and nvcc. In a
            checkout of bnfold tools/build_plugin does it. An installed bnfold compiles the sources in the
            package into the user's cache folder, and needs TensorRT's headers ($TENSORRT_INCLUDE_DIR).

    Raises:
        UsageError: no TensorRT is installed, or one that is too old; there is no such library, or it does not
            load.
    """
    tensorrt = flavours.find(build=False)
    name = f"{tensorrt.__name__} {getattr(tensorrt, '__version__', '')}".strip()
    if not hasattr(tensorrt, "IPluginV3"):
        raise UsageError(f"{name} is too old for the plugin, which needs TensorRT {OLDEST} or newer")
    registry = tensorrt.get_plugin_registry()
    if registry is None:
        raise UsageError(f"{name} has no plugin registry: its libraries do not load here")
    there = _registered(registry)
    earlier = _loaded.get(tensorrt.__name__)
    if there == OPS:
        asked = None if path is None else _absolute(path)
        if asked is not None and earlier is not None and asked != earlier:
            raise UsageError(
                f"the plugin is registered already, from {earlier}: {asked} cannot be loaded as well"
            )
        return Plugin(earlier, OPS, name)
    if there:
        raise UsageError(f"{name} has other plugins of these names already: {', '.join(there)}")
    found = _find(path, build)
    _load(registry, found, name)
    if tensorrt.__name__ == "tensorrt_rtx":
        warnings.warn(_RTX, stacklevel=2)
    _loaded[tensorrt.__name__] = found
    return Plugin(found, OPS, name)


def _registered(registry: Any) -> tuple[str, ...]:
    """The ops whose creators are in a registry."""
    return tuple(op for op in OPS if registry.get_creator(op, VERSION, NAMESPACE) is not None)


def _absolute(path: str | os.PathLike[str]) -> Path:
    """Without following links, so that messages name what a reader knows."""
    return Path(os.path.abspath(path))


def _find(path: str | os.PathLike[str] | None, build: bool) -> Path:
    """The library's absolute path."""
    chosen = {"the path that was given": path, "$BNFOLD_PLUGIN": os.environ.get("BNFOLD_PLUGIN")}
    for origin, given in chosen.items():
        if given:
            if not Path(given).is_file():
                raise UsageError(f"there is no plugin library {given} ({origin}); {_how_to_build()}")
            return _absolute(given)
    built = _CHECKOUT / "build" / LIBRARY if _tool().is_file() else kept()
    if build and not built.is_file():
        _build()
    system = (*os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep), *SYSTEM)
    places = [built.parent, *(Path(folder) for folder in system if folder and Path(folder).is_dir())]
    for folder in places:
        if (folder / LIBRARY).is_file():
            return _absolute(folder / LIBRARY)
    looked = ", ".join(map(str, places))
    raise UsageError(f"the plugin library {LIBRARY} is not found (looked in {looked}); {_how_to_build()}")


def _tool() -> Path:
    return _CHECKOUT / "tools" / "build_plugin"


def _how_to_build() -> str:
    by = f"{_tool()}, or " if _tool().is_file() else ""
    return f"build it: {by}load_plugin(build=True)"


def _build() -> None:
    """By tools/build_plugin in a checkout; what it tells goes to the standard error."""
    if not _tool().is_file():
        compile_plugin()
        return
    done = subprocess.run([_tool()], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise UsageError(f"the plugin library does not build: {_tool()} tells why")


def _load(registry: Any, path: Path, name: str) -> None:
    try:
        # TensorRT says only that it does not load. This stays open, as what TensorRT registers does.
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise UsageError(f"the plugin library does not load: {first_line(error)}") from error
    if not hasattr(library, "getCreators"):
        raise UsageError(f"{path} is no plugin library: it has no getCreators")
    try:
        registry.load_library(str(path))
    except Exception as error:  # of which kind depends on the release
        raise UsageError(f"{name} does not take {path}: {first_line(error)}") from error
    missing = [op for op in OPS if op not in _registered(registry)]
    if missing:
        raise UsageError(
            f"{name} does not take {path}, and its log says why: {', '.join(missing)} are missing"
        )
