"""The page in a real browser, opened from disk: what it shows, what a click tells, what it must not run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import bnfold
from bnfold.report.drawing import Outline, OutlineNode
from bnfold.report.fold import Entry, Report
from bnfold.report.summary import Contents, Summary
from tests.report.html.models import EVIL, net

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is found: apt install chromium"),
    pytest.mark.xdist_group("browser"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="Playwright is not here: pip install playwright"
    )
    root = hasattr(os, "geteuid") and os.geteuid() == 0  # Chromium's sandbox refuses to run as root
    with sync_api.sync_playwright() as player:
        started = player.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"] if root else [])
        yield started
        started.close()


@pytest.fixture(scope="module")
def report() -> Report:
    return bnfold.fold_onnx(net(), check="both")[1]


@dataclass
class Opened:
    """A page that was opened. wrong: what it complained of. fetched: what it asked for."""

    page: Any
    wrong: list[str]
    fetched: list[str]

    def click(self, which: int, name: str) -> str:
        """Click on a node of the graph before (0) or after (1), and give what is told then."""
        canvas = self.page.locator("canvas").nth(which)
        x, y = canvas.evaluate(
            "(c, name) => { const v = c.view, i = v.byName.get(name); v.show(i);"
            " return [(v.nodes[i].x - v.left) * v.scale, (v.nodes[i].y - v.top) * v.scale]; }",
            name,
        )
        canvas.click(position={"x": x, "y": y})
        return self.told()

    def told(self) -> str:
        return str(self.page.inner_text("#details"))

    def colours(self) -> Any:
        """A pixel of each canvas, once what is to be drawn is drawn."""
        self.page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return self.page.evaluate(
            "[...document.querySelectorAll('canvas')]"
            ".map(c => [...c.getContext('2d').getImageData(1, 1, 1, 1).data])"
        )


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """What opens a report's page."""
    pages = []

    def show(report: Report, title: str = "in.onnx") -> Opened:
        path = tmp_path / f"{len(pages)}.html"
        path.write_text(report.to_html(title), encoding="utf-8")
        page = browser.new_page(viewport={"width": 1400, "height": 900}, color_scheme="light")
        pages.append(page)
        found = Opened(page, [], [])
        page.on("console", lambda said: said.type == "error" and found.wrong.append(said.text))
        page.on("pageerror", lambda error: found.wrong.append(str(error)))
        page.on("dialog", lambda dialog: (found.wrong.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: found.fetched.append(request.url))
        page.goto(path.as_uri())
        return found

    yield show
    for page in pages:
        page.close()


def test_it_shows_what_the_json_says(opened: Any, report: Report) -> None:
    found, data = opened(report), report.to_dict()
    page = found.page
    summary = page.inner_text("#summary")
    assert f"{data['folded']} folded" in summary
    assert f"{data['kept']} kept" in summary
    assert f"check: {data['verification']['status']}" in summary
    rows = [row.split("\t") for row in page.inner_text("#entries").splitlines()]
    assert sorted(row[:3] for row in rows) == sorted(
        [e["name"], e["op"], e["outcome"]] for e in data["entries"]
    )
    for kind, count in (("all", len(data["entries"])), ("kept", data["kept"]), ("folded", data["folded"])):
        button = page.locator(f"[data-filter={kind}]")
        assert button.inner_text() == f"{kind} {count}"
        button.click()
        assert page.locator("#entries tr").count() == count
    errors = page.locator("#check .errors tbody tr")
    assert errors.count() == len(data["verification"]["outputs"]) > 0
    assert data["verification"]["outputs"][0]["name"] in errors.first.inner_text()
    assert found.wrong == []
    assert [url.split(":")[0] for url in found.fetched] == ["file"]


def test_a_click_tells_what_became_of_a_batch_norm(opened: Any, report: Report) -> None:
    found = opened(report)
    told = found.click(0, "bn2")
    assert told.startswith("bn2\n\nBatchNormalization folded\n")
    assert "Scale went back, through 2 tensors: " in told
    assert "taken in by middle" in told
    assert "Shift went forward, on the tensor " in told
    assert "taken in by conv2" in told
    told = found.click(0, "last")
    (kept,) = report.kept
    assert "Blocked by gate" in told or f"Blocked by {kept.blocked_by}" in told
    assert kept.reason in told
    assert kept.cure in told
    assert "It took in 1 map: bn1" in found.click(1, "conv1")
    assert "It keeps 1 map: last" in found.click(0, "gate")
    assert "It was merged into" in found.click(0, report.merged[0].replaces[0])
    found.page.locator("#details button.node").first.click()
    assert found.told().startswith(report.merged[0].name)
    assert found.wrong == []


def test_the_summary_of_a_model(opened: Any) -> None:
    before, after = (Contents(18, ["x:1,3"], ["y:1,3"], {kind: 3}, 1234) for kind in ("Conv", "Relu"))
    found = opened(Report(summary=Summary(before, after)))
    rows = [row.split("\t") for row in found.page.inner_text("#model tbody").splitlines()]
    assert ["inputs", "x:1,3", "x:1,3"] in rows
    assert ["parameters", "1,234", "1,234"] in rows
    assert rows[-2:] == [["Conv", "3", "0"], ["Relu", "0", "3"]]
    assert found.wrong == []


def test_the_search_finds_by_name(opened: Any, report: Report) -> None:
    found = opened(report)
    found.page.fill("#search", "BN")
    found.page.locator("#matches", has_text="2 nodes").wait_for()
    assert found.page.locator("#entries tr").count() == 2
    for name in ("bn1", "bn2", "bn1"):
        found.page.press("#search", "Enter")
        assert found.told().startswith(name)
    found.page.fill("#search", "nowhere")
    found.page.locator("#matches", has_text="nothing").wait_for()


def test_names_are_not_run(opened: Any) -> None:
    hostile = bnfold.fold_onnx(net(last=EVIL, second=EVIL + "2"))[1]
    found = opened(hostile, EVIL)
    shown = EVIL.replace("\u202e", "\\u202e")
    assert found.click(0, EVIL).startswith(shown)
    assert shown in found.page.inner_text("#entries")
    assert found.page.title() == f"bnfold: {EVIL}"
    assert found.page.locator("img").count() == 0
    assert found.page.locator("script").count() == 2
    assert found.wrong == []


def test_light_and_dark_at_any_width(opened: Any, report: Report) -> None:
    found = opened(report)
    for dark in (False, True):
        found.page.emulate_media(color_scheme="dark" if dark else "light")
        for wide in (1400, 900, 400):
            found.page.set_viewport_size({"width": wide, "height": 900})
            for *rgb, alpha in found.colours():
                assert (max(rgb) < 60) if dark else (min(rgb) > 230)
                assert alpha == 255
            beyond = "document.scrollingElement.scrollWidth - document.scrollingElement.clientWidth"
            assert found.page.evaluate(beyond) <= 0
    assert found.wrong == []


def test_names_may_hold_commas(opened: Any) -> None:
    reason = "backward, a, b: it is so; forward, c: it is not"
    kept = Entry("bn", "BatchNormalization", "kept", (), reason, "a, b, c")
    alone = Entry("one", "BatchNormalization", "kept", (), "it is so", "a, b")
    page = opened(Report([kept, alone])).page
    for row, names in enumerate((["bn", "a, b", "c"], ["one", "a, b"])):
        assert page.locator("#entries tr").nth(row).locator("button").all_inner_texts() == names


class Fixed:
    def __init__(self, count: int) -> None:
        ends = ((f"t{i}", f"t{i + 1}") for i in range(count))
        self.nodes = tuple(
            OutlineNode(f"n{i}", "BatchNormalization", (x,), (y,)) for i, (x, y) in enumerate(ends)
        )

    def outline(self) -> Outline:
        return Outline(("t0",), self.nodes, (f"t{len(self.nodes)}",))


def test_of_a_large_graph_only_what_is_in_sight_is_drawn(opened: Any) -> None:
    count = 5000
    entries = [Entry(f"n{i}", "BatchNormalization", "folded", ("n0",)) for i in range(count)]
    found = opened(Report(entries, graphs=(Fixed(count), Fixed(count))))
    found.page.evaluate(
        "const pen = CanvasRenderingContext2D.prototype, draw = pen.fillText; window.drawn = 0;"
        "pen.fillText = function (...a) { window.drawn++; draw.apply(this, a); }; null"
    )
    assert found.click(0, "n4000").startswith("n4000\n")
    assert 0 < found.page.evaluate("drawn") < 400
    assert found.page.locator("#entries tr").count() == 200
    assert "of 4,800 more" in found.page.inner_text("#more")
    assert found.wrong == []


def test_in_a_notebook(browser: Any, report: Report) -> None:
    page = browser.new_page()
    page.set_content(f"<p>above</p>{report._repr_html_()}")
    frame = page.frame_locator("iframe")
    frame.locator("#entries button").first.click()
    assert "kept" in frame.locator("#details").inner_text()
    page.close()
