"""Where this package came from, for advice on what to install that works from there too."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

__all__ = ["extra"]


def extra(name: str) -> str:
    """The command that installs what an extra of this package brings: "pip install 'bnfold[torch]'"."""
    source = _source()
    if source.startswith("git+"):
        return f"pip install 'bnfold[{name}] @ {source}'"
    return f"pip install '{source}[{name}]'"


@cache
def _source() -> str:
    """A checkout, a file, an address of a repository; else the name that a package index knows."""
    root = Path(__file__).resolve().parent.parent
    if (root / "pyproject.toml").is_file():
        return str(root)
    from importlib import metadata  # it takes a third of the time that `bnfold --help` does

    try:
        origin = json.loads(metadata.distribution("bnfold").read_text("direct_url.json") or "{}")
    except (metadata.PackageNotFoundError, ValueError):
        return "bnfold"
    url = str(origin.get("url", ""))
    if "vcs_info" in origin:
        return f"git+{url}@{origin['vcs_info'].get('commit_id', 'HEAD')}"
    path = unquote(urlsplit(url).path) if url.startswith("file:") else ""
    return path if path and Path(path).exists() else "bnfold"
