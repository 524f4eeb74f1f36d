"""The part of the package's description that pyproject.toml cannot say: the README for an index page.

An index shows the README by itself. What it names by a path beside it (pictures, pages) is not there, so
pictures are left out, and of links the words stay.
"""

import re
from pathlib import Path

from setuptools import setup

PICTURE = re.compile(r"^!\[[^\]]*\]\((?!https?:)[^)]*\)\n+", re.MULTILINE)
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:)[^)]*\)")
MARKER = re.compile(r"^<!--.*?-->\n", re.MULTILINE | re.DOTALL)


def for_an_index(text: str) -> str:
    """Markdown that needs no other file."""
    return LINK.sub(r"\1", PICTURE.sub("", MARKER.sub("", text)))


if __name__ == "__main__":
    readme = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
    setup(long_description=for_an_index(readme), long_description_content_type="text/markdown")
