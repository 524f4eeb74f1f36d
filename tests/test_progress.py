"""The bar: for people only, and only over long work."""

from __future__ import annotations

import pytest

import bnfold.progress


class Terminal:
    """A stderr that counts as a terminal."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self.text = ""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass


@pytest.mark.parametrize(("seconds", "drawn"), [(0.0, True), (1000.0, False)])
def test_progress_waits_for_long_work(monkeypatch: pytest.MonkeyPatch, seconds: float, drawn: bool) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(bnfold.progress, "PATIENCE", seconds)
    with bnfold.progress.progress("Folding") as advance:
        advance(3, 7, "conv[red]")
    assert ("3/7" in terminal.text and "conv[red]" in terminal.text) == drawn
    assert (terminal.text == "") != drawn


def test_progress_is_quiet_in_a_pipe(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bnfold.progress, "PATIENCE", 0.0)
    with bnfold.progress.progress("Folding") as advance:
        advance(1, 2, "conv")
        advance(2, 2)
    assert capsys.readouterr() == ("", "")
