"""What tests measured, below their outcome; how parallel workers share the cores; one seed for each test."""

from __future__ import annotations

import os
import sys

import pytest

# Read by torch when it is loaded: threads of several workers would wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _one_seed() -> None:
    """What a test draws from torch's own generator depends on no other test."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


def pytest_configure(config: pytest.Config) -> None:
    """Without xdist there are no workers, and the mark means nothing."""
    config.addinivalue_line("markers", "xdist_group(name): tests that share what they build, for one worker")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """pytest-xdist marks a group in the test's id, which not every pytest lets it change."""
    if getattr(config.option, "loadgroup", False):
        lost = [
            each.nodeid for each in items if each.get_closest_marker("xdist_group") and "@" not in each.nodeid
        ]
        if lost:
            versions = "constraints.txt pins a pytest and a pytest-xdist that keep groups"
            message = f"{lost[0]} would run apart from its group: {versions}"
            raise pytest.UsageError(message)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints the lines that tests recorded as a property "measured", sorted."""
    reports = terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
    lines = {value for each in reports for name, value in each.user_properties if name == "measured"}
    for line in sorted(lines):
        terminalreporter.write_line(line)
