"""A hook of mkdocs: the site has pages that lie beside docs/ too, and links lead to where each page is there.

In the repository the README, say, links to `docs/export.md`, and a page of docs/ to `../bench/README.md`.
Both work there, and by this hook on the site.
"""

from __future__ import annotations

import itertools
import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
PAGES = {  # in the repository, and on the site
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "bench/README.md": "bench.md",
}
AT = {site: path for path, site in PAGES.items()}
DIAGRAM = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NODE = re.compile(r"(\w+)(?:\[\"([^\"]*)\"\])?")
LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)#\s]+)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages from outside of docs/, and the files that any page links to there."""
    for path, site in PAGES.items():
        files.append(File.generated(config, site, content=(ROOT / path).read_text(encoding="utf-8")))
    for page in [file for file in files if file.is_documentation_page()]:
        for target in LINK.findall(page.content_string):
            path = in_repository(page.src_uri, target)
            if site_path(path) == f"files/{path}" and files.get_file_from_path(f"files/{path}") is None:
                files.append(File.generated(config, f"files/{path}", abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The same text, with links as they are on the site."""
    here = page.file.src_uri

    def there(link: re.Match[str]) -> str:
        return posixpath.relpath(site_path(in_repository(here, link[1])), posixpath.dirname(here) or ".")

    return DIAGRAM.sub(lambda found: arrows(found[1]), LINK.sub(there, markdown))


def arrows(diagram: str) -> str:
    """A diagram of Mermaid as a table: a browser draws one only with a script from elsewhere."""
    labels: dict[str, str] = {}
    found: dict[str, list[str]] = {}
    for line in diagram.splitlines()[1:]:
        ends = NODE.findall(line.replace("-->", " "))
        labels |= {name: label for name, label in ends if label}
        for (start, _), (end, _) in itertools.pairwise(ends):
            found.setdefault(start, []).append(end)
    rows = []
    for name, label in labels.items():
        title, _, rest = label.partition(": ")
        targets = (labels[end].partition(": ")[0] for end in found.get(name, ()))
        rows.append(f"| {title} | {rest} | {', '.join(targets)} |")
    return "\n".join(["| | | imports |", "|---|---|---|", *rows])


def in_repository(page: str, target: str) -> str:
    """What a link of a page of the site leads to, as a path from the root of the repository."""
    here = AT.get(page, f"docs/{page}")
    return posixpath.normpath(posixpath.join(posixpath.dirname(here), target))


def site_path(path: str) -> str:
    """Where a file of the repository is on the site; for a folder, the page of the README in it or above."""
    if path in PAGES:
        return PAGES[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if os.path.isdir(ROOT / path):
        while f"{path}/README.md" not in PAGES and path:
            path = posixpath.dirname(path)
        return PAGES[f"{path}/README.md".lstrip("/")]
    return f"files/{path}"
