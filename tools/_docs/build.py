"""Builds the site as strictly as mkdocs can, and checks that reading it asks nobody else for anything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "build" / "site"
# what a browser fetches by itself; a link is followed by its reader
LOADED = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?(?:https?:)?//[^"'\s>]+|"""
    r"""<link\b(?=[^>]*\brel=["']?(?:stylesheet|preconnect|icon|preload))[^>]*\bhref=["']?(?:https?:)?//[^"'\s>]+"""
)


def outside(site: Path) -> Iterator[str]:
    """What pages load from elsewhere, each with the page that does."""
    for page in sorted(site.rglob("*.html")):
        for found in LOADED.findall(page.read_text(encoding="utf-8")):
            yield f"{page.relative_to(site)}: {found}"


def main() -> int:
    """The exit status."""
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}  # an advertisement
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(SITE)]
    status = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    wrong = list(outside(SITE)) if status == 0 else []
    for line in wrong:
        print(f"loaded from elsewhere: {line}", file=sys.stderr)
    if status == 0 and not wrong:
        pages = len(list(SITE.rglob("*.html")))
        print(f"{pages} pages in {SITE.relative_to(ROOT)}; the search works where they are served")
    return status or bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
