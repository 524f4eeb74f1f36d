"""What pyproject.toml cannot say: the plugin's sources in the wheel, and the README for an index page.

In a checkout the sources of TensorRT's plugin lie beside the package; an installed one has them in it.

An index shows the README by itself. What it names by a path beside it (pictures, pages) is not there, so
pictures are left out, and of links the words stay.
"""

import re
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent

PICTURE = re.compile(r"^!\[[^\]]*\]\((?!https?:)[^)]*\)\n+", re.MULTILINE)
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:)[^)]*\)")
MARKER = re.compile(r"^<!--.*?-->\n", re.MULTILINE | re.DOTALL)


def for_an_index(text: str) -> str:
    """Markdown that needs no other file."""
    return LINK.sub(r"\1", PICTURE.sub("", MARKER.sub("", text)))


class WithPlugin(build_py):
    """The package, with the folder plugins/ in it."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            shutil.copytree(HERE / "plugins", Path(self.build_lib, "bnfold", "plugins"), dirs_exist_ok=True)


if __name__ == "__main__":
    readme = (HERE / "README.md").read_text(encoding="utf-8")
    setup(
        cmdclass={"build_py": WithPlugin},
        long_description=for_an_index(readme),
        long_description_content_type="text/markdown",
    )
