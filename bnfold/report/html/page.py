"""The page's text: a template, its style and its script, and the report as data in it.

Names and texts of a model are whatever its author wrote. They reach the page as JSON in which nothing can end
the element that holds it, the script shows them as text only, and the page's own policy lets no script run
but the one whose hash it names, and nothing be fetched.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnfold.report.html.picture import picture

if TYPE_CHECKING:
    from bnfold.report.fold import Report

__all__ = ["frame", "page"]

FOLDER = Path(__file__).resolve().parent
SCRIPTS = ("words.js", "graph.js", "page.js")  # in this order, as one
HIGH = 640  # pixels of a frame in a notebook


def page(report: Report, title: str = "") -> str:
    """A whole page, of ASCII characters only. title: what was folded, such as a file's name."""
    style = _text("page.css")
    script = "".join(map(_text, SCRIPTS))
    policy = f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'"
    parts = {
        "title": html.escape(title or "a model"),
        "policy": html.escape(policy, quote=True),
        "style": style,
        "script": script,
        "data": _inert(_data(report, title)),
    }
    whole = re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _text("page.html"))
    return whole.encode("ascii", "xmlcharrefreplace").decode()


def frame(report: Report, title: str = "") -> str:
    """The page inside a frame, for a notebook: neither sees the other's names and styles."""
    return (
        f'<iframe sandbox="allow-scripts" style="width:100%;height:{HIGH}px;border:0" '
        f'title="What bnfold did" srcdoc="{html.escape(page(report, title), quote=True)}"></iframe>'
    )


def _data(report: Report, title: str) -> dict[str, Any]:
    graphs = None
    if report.graphs is not None:
        told = {entry.name for entry in report.entries}
        graphs = [picture(drawn.outline(), told) for drawn in report.graphs]
    routes = {
        name: [[way.side, way.tensors, way.into] for way in route] for name, route in report.routes.items()
    }
    return {"title": title, "report": report.to_dict(), "graphs": graphs, "routes": routes}


def _inert(data: dict[str, Any]) -> str:
    """JSON in which no character means anything to a reader of HTML."""
    try:
        text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    except ValueError:  # what is infinite, or no number, is none in JSON
        text = json.dumps(_finite(data), separators=(",", ":"))
    return re.sub("[<>&]", lambda found: f"\\u{ord(found[0]):04x}", text)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _text(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
