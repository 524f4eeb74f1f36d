"""What every test on a GPU is guarded by: one that hangs is killed, one that breaks the device is named."""

from __future__ import annotations

import faulthandler
import sys
from collections.abc import Iterator

import pytest
import torch

MOST = 120  # seconds of one test
_broken: list[str] = []


@pytest.fixture(autouse=True)
def guarded(request: pytest.FixtureRequest) -> Iterator[None]:
    """After an illegal access no test can run in this process: the others are skipped, and say why."""
    if not torch.cuda.is_available():
        yield
        return
    if _broken:
        pytest.skip(f"{_broken[0]} broke the device")
    assert sys.__stderr__ is not None
    faulthandler.dump_traceback_later(MOST, exit=True, file=sys.__stderr__)
    yield
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        _broken.append(request.node.name)
        raise
    finally:
        faulthandler.cancel_dump_traceback_later()
