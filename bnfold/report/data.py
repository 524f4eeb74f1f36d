"""A report as plain data, for JSON."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

__all__ = ["Data", "Span", "plain"]


class Span(NamedTuple):
    """The smallest and largest among the channels' largest absolute values."""

    low: float
    high: float


class Data:
    """What dataclasses of a report share."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data: what each field holds, by its name."""
        return {name: plain(value) for name, value in vars(self).items()}

    def to_json(self, indent: int | None = 1) -> str:
        return json.dumps(self.to_dict(), indent=indent)


def plain(value: Any) -> Any:
    """A field's content as plain data: named tuples are dicts, a `Span` is a list."""
    if isinstance(value, Data):
        return value.to_dict()
    if isinstance(value, Span):
        return list(value)
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if hasattr(value, "_asdict"):
        return {key: plain(each) for key, each in value._asdict().items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(plain, value))
    return value
