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
    """What the dataclasses of a report share: JSON with a key for each field.

    One that says more, or less, than its fields hold adds to `to_dict`.
    """

    def to_dict(self) -> dict[str, Any]:
        """Plain data: what each field holds, by its name."""
        return {name: plain(value) for name, value in vars(self).items()}

    def to_json(self, indent: int | None = 1) -> str:
        """The same as text; `indent` as for `json.dumps`."""
        return json.dumps(self.to_dict(), indent=indent)


def plain(value: Any) -> Any:
    """A field's content as plain data: named tuples are dicts, but a `Span` is a list."""
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if isinstance(value, Span):
        return list(value)
    if hasattr(value, "_asdict"):
        return {key: plain(each) for key, each in value._asdict().items()}
    return [plain(each) for each in value] if isinstance(value, list) else value
