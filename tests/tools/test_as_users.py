"""tools/as_users: every page belongs to a user, and what does not happen as a page says is told."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from tools._docs.as_users import play
from tools._docs.blocks import blocks_of
from tools._docs.users import ROOT, USERS, is_played

PAGE = """\
# A page

## First

```console
$ echo 1.25 things; false
1.50 things
$ echo $?
1
$ cat absent
...absent...
```

## Second

```python
print("a", "b")                  # a b
print([1, 2])
# [1, 2]
```

<!-- slow -->
```console
$ exit 3
```
"""


def test_every_block_is_typed_by_a_user_once_or_by_all() -> None:
    """The first section of the README is everybody's."""
    typed = Counter(block for user in USERS.values() for _, blocks in user.read(ROOT) for block in blocks)
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    there = [block for page in pages for block in blocks_of(page) if is_played(block)]
    assert set(there) == set(typed)
    assert all(count == (4 if block.section == "Two commands" else 1) for block, count in typed.items())


def test_a_page_that_is_true(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(PAGE)
    blocks = [block for block in blocks_of(tmp_path / "page.md") if is_played(block)]
    kinds = [(block.section, block.language) for block in blocks]
    assert kinds == [("First", "console"), ("Second", "python")]
    assert [told for block in blocks for told in play(block, tmp_path, dict(os.environ))] == []


def test_what_does_not_happen_is_told(tmp_path: Path) -> None:
    page = PAGE.replace("1.50 things", "1.50 apples").replace("# [1, 2]\n", "# [1, 3]\n") + (
        "```python\nprint(1)\nraise SystemExit(3)\n```\n\n```python\nprint(nothing)\n```\n"
    )
    (tmp_path / "page.md").write_text(page)
    blocks = [block for block in blocks_of(tmp_path / "page.md") if is_played(block)]
    told = [text for block in blocks for text in play(block, tmp_path, dict(os.environ))]
    assert [text.splitlines()[:2] for text in told] == [
        ["page.md:5: `echo 1.25 things; false` does not print", "  1.50 apples"],
        ["page.md:16: `python program.py` does not print", "  [1, 3]"],
        ["page.md:26: `python program.py` ends with 3:", "1"],
        ["page.md:31: `python program.py` ends with 1:", "Traceback (most recent call last):"],
    ]
