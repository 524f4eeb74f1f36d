"""The page as text: all that it needs is in it, and nothing of a model can be more than text."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest

import bnfold
from bnfold.report.fold import Merge, Noise, Report
from bnfold.report.html.page import FOLDER, SCRIPTS, page
from tests.report.html.models import EVIL, net


class Elements(HTMLParser):
    """What a parser of HTML sees: elements with their attributes, and the text inside of each kind."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.inside = tag

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self.inside, []).append(data)


def data(text: str) -> Any:
    """What the page's script reads."""
    return json.loads(Elements(text).texts["script"][0])


@pytest.fixture(scope="module")
def report() -> Report:
    return bnfold.fold_onnx(net())[1]


def test_the_data_is_the_report(report: Report) -> None:
    found = data(report.to_html("in.onnx"))
    assert found["report"] == json.loads(report.to_json())
    assert found["title"] == "in.onnx"
    before, after = ({name for name, *_ in graph["nodes"]} for graph in found["graphs"])
    assert {"bn1", "bn2", "last", "left", "right", "gate", "x"} <= before
    assert {"last", "gate", "x"} <= after
    assert not {"bn1", "bn2"} & after
    assert set(found["routes"]) == {entry.name for entry in report.folded}
    scale, shift = found["routes"]["bn2"]
    assert (scale[0], shift[0]) == ("back", "forward")
    assert shift[2] == ["conv2"]


def test_nothing_is_fetched(report: Report) -> None:
    text = report.to_html()
    assert text.isascii()
    for tag, attributes in Elements(text).elements:
        assert not {"src", "href", "srcset", "action"} & set(attributes), tag
    own = "".join((FOLDER / name).read_text() for name in (*SCRIPTS, "page.css", "page.html"))
    assert not re.search(
        r"url\(|@import|https?:|fetch\(|import\(|innerHTML|XMLHttp|outerHTML|document.write", own
    )


def test_the_policy_lets_only_its_own_script_run(report: Report) -> None:
    text = report.to_html()
    found = Elements(text)
    policy = next(
        a["content"] for tag, a in found.elements if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    for kind, content in {"style": found.texts["style"][0], "script": found.texts["script"][1]}.items():
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy


def test_names_are_text_and_nothing_else() -> None:
    model = net(last=EVIL, second=EVIL + "2")
    model.graph.input[0].name = model.graph.node[0].input[0] = EVIL + "3"
    report = bnfold.fold_onnx(model)[1]
    plain = bnfold.fold_onnx(net())[1]
    text, usual = report.to_html(EVIL), plain.to_html("a")
    assert [tag for tag, _ in Elements(text).elements] == [tag for tag, _ in Elements(usual).elements]
    assert EVIL in {entry["name"] for entry in data(text)["report"]["entries"]}
    assert text.count("<script") == usual.count("<script")
    (shown,) = Elements(text).texts["title"]
    assert shown == f"bnfold: {EVIL}"


def test_a_notebook_shows_the_page_in_a_frame(report: Report) -> None:
    text = report._repr_html_()
    [(tag, attributes)] = Elements(text).elements
    assert (tag, attributes["sandbox"]) == ("iframe", "allow-scripts")
    assert attributes["srcdoc"] == page(report)
    assert html.unescape(text.split('srcdoc="')[1].split('"')[0]) == page(report)


def test_a_report_without_graphs_has_a_page() -> None:
    found = data(Report().to_html())
    assert (found["graphs"], found["routes"], found["report"]["folded"]) == (None, {}, 0)


def test_numbers_that_json_has_not_are_none() -> None:
    noise = Noise("int8", float("-inf"), float("nan"))
    text = Report(merged=[Merge("a", "Conv", ("b",), 2, 1, noise)]).to_html()
    (merged,) = data(text)["report"]["merged"]
    assert merged["noise"] == {"target": "int8", "apart_db": None, "merged_db": None}
    assert merged["replaces"] == ["b"]
    assert "Infinity" not in Elements(text).texts["script"][0]


def test_the_json_of_a_report_has_no_picture(report: Report) -> None:
    assert not {"graphs", "routes", "certificate"} & set(report.to_dict())
