"""tools/docs: where links lead on the site, and what its pages may load. tools/test builds the whole site."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("mkdocs", reason="the site is built where the extra docs is installed")

import bnfold
from bnfold import compress, nn, tensorrt
from tools._common import ROOT
from tools._docs import build, pages


@pytest.mark.parametrize(
    ("page", "link", "site"),
    [
        ("index.md", "docs/export.md#inputs", "export.md#inputs"),
        ("index.md", "bench/README.md", "bench.md"),
        ("bench.md", "../docs/training.md", "training.md"),
        ("peers.md", "../README.md#beside-other-tools", "index.md#beside-other-tools"),
        ("performance.md", "../bench/results", "bench.md"),
        ("performance.md", "../bench/results/zoo.json", "files/bench/results/zoo.json"),
        ("report.md", "../examples/ci/fold.yml", "files/examples/ci/fold.yml"),
        ("reference/fold.md", "../python.md", "../python.md"),
        ("report.md", "check.md", "check.md"),
        ("report.md", "https://example.org/docs/a.md", "https://example.org/docs/a.md"),
        ("report.md", "#guard", "#guard"),
    ],
)
def test_links_lead_to_the_same_page_on_the_site(page: str, link: str, site: str) -> None:
    found = SimpleNamespace(file=SimpleNamespace(src_uri=page))
    assert pages.on_page_markdown(f"[a]({link})", found) == f"[a]({site})"


def test_a_diagram_is_a_table_of_its_arrows() -> None:
    """The site loads no script that would draw it."""
    lines = ["flowchart TD", 'a["a/: one"] --> b', 'a --> c["c/"]', 'b["b/: two"]', "b --> c"]
    text = "\n".join(["Before.", "", "```mermaid", *lines, "```", ""])
    found = SimpleNamespace(file=SimpleNamespace(src_uri="architecture.md"))
    table = "| | | imports |\n|---|---|---|\n| a/ | one | b/, c/ |\n| c/ |  |  |\n| b/ | two | c/ |"
    assert pages.on_page_markdown(text, found) == f"Before.\n\n{table}\n"


def test_the_reference_has_all_public_names() -> None:
    pages = (ROOT / "docs" / "reference").glob("*.md")
    told = set(re.findall(r"^::: (\S+)$", "\n".join(page.read_text() for page in pages), re.MULTILINE))
    homes = {"bnfold": bnfold, "bnfold.nn": nn, "bnfold.compress": compress, "bnfold.tensorrt": tensorrt}
    names = {f"{home}.{name}" for home, module in homes.items() for name in module.__all__}
    missing = names - {*homes, "bnfold.__version__"} - told
    for name in missing:  # they are told where they are defined
        home, _, last = name.rpartition(".")
        assert f"{getattr(homes[home], last).__module__}.{last}" in told
    modules = {name for name in told if (ROOT / f"{name.replace('.', '/')}.py").exists()}
    assert modules == set(), "the reference would show the module of that name"


def test_all_pages_of_the_repository_are_there() -> None:
    assert all((ROOT / path).is_file() for path in pages.PAGES)


def test_what_is_loaded_from_elsewhere_is_found(tmp_path: Path) -> None:
    harmless = (
        '<a href="https://example.org">a link</a> <script src="assets/a.js"></script> <img src=b.png> '
        '<link rel="stylesheet" href="c.css"> <link rel="canonical" href="https://example.org/page">'
    )
    (tmp_path / "good.html").write_text(harmless)
    assert list(build.outside(tmp_path)) == []
    for bad in (
        '<script src="https://unpkg.com/shim"></script>',
        "<script async src=//example.org/a.js></script>",
        '<link rel="stylesheet" href="https://fonts.example.org/css">',
        '<link href="https://fonts.example.org" rel="preconnect" crossorigin>',
        '<img alt="a" src="https://example.org/badge.svg">',
    ):
        (tmp_path / "bad.html").write_text(harmless + bad)
        [told] = build.outside(tmp_path)
        assert told.startswith("bad.html: ")
