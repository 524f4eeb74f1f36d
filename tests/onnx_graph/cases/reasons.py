"""Words that must occur in the reason for which a batch norm stays. The rest of the wording is free."""

from __future__ import annotations

REASONS: dict[str, str] = {
    "input": "graph input",
    "output": "graph output",
    "shift": "shift",  # "Relu does not pass a shift", ...
    "padding": "padding",
    "negative": "negative scale",
    "zero": "zero scale",
    "statistics": "batch statistics",
    "axis": "axis",
    "override": "overrid",  # overridden, overridable
    "constant": "not constant",
    "closed": "not linear",  # what passes nothing: "Sigmoid is not linear"
    "quantized": "quantized",
    "range": "range",
    "edge": "input",  # of a body or a function
    "captured": "captured",
    "varies": "varies along",  # must be the same along an axis, and is not
}
