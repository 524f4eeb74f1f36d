"""What tests measured, below their outcome."""

from __future__ import annotations

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints the lines that tests recorded as a property "measured", sorted."""
    reports = terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
    lines = {value for each in reports for name, value in each.user_properties if name == "measured"}
    for line in sorted(lines):
        terminalreporter.write_line(line)
