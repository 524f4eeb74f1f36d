"""The table of foldable cases: every kind of batch norm that can vanish, as a tiny model."""

from __future__ import annotations

from tests.onnx_graph.cases.case import Pattern
from tests.onnx_graph.cases.patterns_back import BACK
from tests.onnx_graph.cases.patterns_chosen import CHOSEN
from tests.onnx_graph.cases.patterns_forward import FORWARD
from tests.onnx_graph.cases.patterns_quantized import BLOCKED, QUANT
from tests.onnx_graph.cases.patterns_sideways import SIDEWAYS
from tests.onnx_graph.cases.patterns_sizes import SIZES
from tests.onnx_graph.cases.patterns_stored import STORED
from tests.onnx_graph.cases.patterns_through import THROUGH

PATTERNS: list[Pattern] = [*BACK, *THROUGH, *FORWARD, *SIDEWAYS, *QUANT, *BLOCKED, *STORED, *SIZES, *CHOSEN]
