"""The result of tools/bench_equalize as docs/compression.md shows it."""

from __future__ import annotations

from typing import Any

from tools._common import markdown

__all__ = ["lines", "text"]

HEADINGS = (
    *("network", "weight ranges", "one scale: same", "error", "ms"),
    *("each channel's: same", "error", "ms", "float32 ms"),
)


def text(result: dict[str, Any]) -> str:
    """What the numbers are."""
    counts = "; ".join(
        f"{name}: calibrated on {network['calibration']}, compared on {network['pictures']}"
        for name, network in result["networks"].items()
    )
    return (
        "**What int8 costs** networks on crops of scikit-image's photographs, calibrated on some and "
        f"compared with float32 on others, twice (`tools/bench_equalize`; {counts}), by onnxruntime "
        f"{result['versions']['onnxruntime']}: int8 weights, one scale for each weight or for each output "
        "channel, and uint8 activations. *Same*: the share of answers that are those of float32. "
        "*Error*: of the outputs before softmax, relative, in the 2-norm. *ms*: the median for one picture "
        f"on one thread of an {result['machine']['cpu']}."
    )


def lines(result: dict[str, Any]) -> list[str]:
    """The table."""
    rows = []
    for name, network in result["networks"].items():
        for way, row in network["ways"].items():
            cells = []
            for kind in ("per_tensor", "per_channel"):
                one = row[kind]
                cells += [f"{one['same']:.1%}", f"{one['error']:.3f}", f"{one['milliseconds']:.1f}"]
            cells.append(f"{row['float32']['milliseconds']:.1f}")
            rows.append((name, way, *cells))
    return markdown(HEADINGS, rows, "ll")
