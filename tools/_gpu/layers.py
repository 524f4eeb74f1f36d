"""The batch norms of ResNet-50: what is measured of them, in which order, what it must move. Without torch.

A case is one layer at one batch size, type and layout, with what follows it. Every case has three passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

BATCHES = (128, 256, 64)  # in the order in which they are measured, here as in what follows
TYPES = {"bfloat16": 2, "float16": 2, "float32": 4}  # bytes of a value
LAYOUTS = ("channels_last", "NCHW")
FUSIONS = ("alone", "add_relu", "relu")
PASSES = ("forward", "backward", "eval")

# bfloat16 with channels last is the usual choice of today; for float16 and float32 torch has cuDNN.
_KINDS = (
    ("bfloat16", "channels_last"),
    ("float16", "channels_last"),
    ("bfloat16", "NCHW"),
    ("float32", "channels_last"),
    ("float32", "NCHW"),
    ("float16", "NCHW"),
)


@dataclass(frozen=True)
class Layer:
    """counts: how many batch norms of this shape the network has, by what follows them."""

    channels: int
    height: int
    width: int
    counts: dict[str, int] = field(hash=False)

    @property
    def name(self) -> str:
        return f"{self.channels}x{self.height}x{self.width}"

    @property
    def count(self) -> int:
        return sum(self.counts.values())


# torchvision's (v1.5, stride in the 3x3 convolution), largest first.
LAYERS = (
    Layer(64, 112, 112, {"relu": 1}),
    Layer(256, 56, 56, {"add_relu": 3, "alone": 1}),
    Layer(128, 56, 56, {"relu": 1}),
    Layer(512, 28, 28, {"add_relu": 4, "alone": 1}),
    Layer(64, 56, 56, {"relu": 6}),
    Layer(256, 28, 28, {"relu": 1}),
    Layer(1024, 14, 14, {"add_relu": 6, "alone": 1}),
    Layer(128, 28, 28, {"relu": 7}),
    Layer(512, 14, 14, {"relu": 1}),
    Layer(2048, 7, 7, {"add_relu": 3, "alone": 1}),
    Layer(256, 14, 14, {"relu": 11}),
    Layer(512, 7, 7, {"relu": 5}),
)


@dataclass(frozen=True)
class Case:
    """fusion: what follows the batch norm: nothing, a ReLU, or the residual's addition and a ReLU."""

    layer: Layer
    batch: int
    type: str
    layout: str
    fusion: str

    @property
    def key(self) -> str:
        """Its name in the results."""
        return f"{self.batch} {self.type} {self.layout} {self.layer.name} {self.fusion}"

    @property
    def values(self) -> int:
        return self.batch * self.layer.channels * self.layer.height * self.layer.width

    @property
    def tensor(self) -> int:
        """Bytes of one tensor of activations."""
        return self.values * TYPES[self.type]

    @property
    def in_network(self) -> bool:
        """Whether the network has such a layer."""
        return self.layer.counts.get(self.fusion, 0) > 0

    def floor(self, which: str) -> int:
        """Bytes that a pass must move: each input read once, each output written once.

        In training, an addition and a ReLU need one bit a value to find the ReLU's side again.
        """
        added = self.fusion == "add_relu"
        tensors = {"forward": 2, "backward": 3, "eval": 2}[which] + added
        bits = added and which != "eval"
        return tensors * self.tensor + (self.values // 8 if bits else 0)


def cases(
    batches: Sequence[int] = BATCHES,
    types: Sequence[str] = tuple(TYPES),
    layouts: Sequence[str] = LAYOUTS,
    fusions: Sequence[str] = FUSIONS,
    layers: Sequence[str] = (),
) -> list[Case]:
    """Those that are asked for (no layers: all of them), the most important ones first."""
    return [
        Case(layer, batch, kind, layout, fusion)
        for batch in BATCHES
        for kind, layout in _KINDS
        for fusion in FUSIONS
        for layer in LAYERS
        if batch in batches and kind in types and layout in layouts and fusion in fusions
        if not layers or layer.name in layers
    ]


@dataclass(frozen=True)
class Task:
    """compiled: measure what torch.compile makes of torch's modules; otherwise everything else."""

    case: Case
    compiled: bool = False


def tasks(wanted: Sequence[Case], compile_too: bool) -> list[Task]:
    """What to do, in order. Compiling a case takes seconds, so few are, behind the first batch size."""
    first = [Task(case) for case in wanted if case.batch == wanted[0].batch]
    rest = [Task(case) for case in wanted if case.batch != wanted[0].batch]
    compiled = [
        Task(task.case, compiled=True)
        for task in first
        if (task.case.type, task.case.layout) == _KINDS[0] and task.case.in_network
    ]
    return [*first, *(compiled if compile_too else []), *rest]
