"""What one call of an exported program does, by itself: compared with another's, or computed by torch.

An operator is computed by torch itself, in float64 where the program has any floating type. What is asked for
as a floating type in its arguments is float64 then, too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from bnfold.proof.operator import Array, Operator, Undecided, wide
from bnfold.proof.scope import Node

__all__ = ["Call", "Slot", "TorchOperator", "to_array"]

CPU = torch.device("cpu")
SINCE = 18  # the opset whose operators are meant by ONNX's names


@dataclass(frozen=True)
class Slot:
    """Where an input of a node stands in a call. number: what it is as Python has it; None: a tensor."""

    index: int
    number: Callable[[Any], Any] | None = None


class TorchOperator(Operator):
    """A call without what it reads.

    target: what is called. arguments: by name, with a `Slot` for each input. known: whether it may be
    computed on random numbers: which pieces it has is known then.
    """

    def __init__(self, op: str, target: Any, arguments: Mapping[str, Any], known: bool) -> None:
        self.op, self.domain, self.since = op, "", SINCE
        self.target, self.arguments, self.known = target, arguments, known
        leaves, structure = pytree.tree_flatten(dict(arguments))
        self.key: Any = (str(target), str(structure), *((type(leaf), repr(leaf)) for leaf in leaves))
        self.identity = self.key

    def run(self, values: Sequence[Array | None]) -> list[Array]:
        """In the types of the program. Raises Undecided."""
        return self._call(values, False)

    def run_wide(self, values: Sequence[Array | None]) -> tuple[list[Array], bool]:
        """In float64. Raises Undecided."""
        if not self.known:
            raise Undecided(f"{self.op} is in no table of operators whose pieces are known")
        return [wide(value) for value in self._call(values, True)], False

    def moved(self, rng: np.random.Generator) -> Operator:
        """The same with other floating arguments: off by half a unit in the last place of float32."""

        def other(leaf: Any) -> Any:
            return leaf * (1 + rng.choice([-1.0, 1.0]) * 2.0**-24) if isinstance(leaf, float) else leaf

        made = copy.copy(self)
        made.arguments = pytree.tree_map(other, dict(self.arguments))
        return made

    def _call(self, values: Sequence[Array | None], in_float64: bool) -> list[Array]:
        def leaf_of(leaf: Any) -> Any:
            if isinstance(leaf, Slot):
                value = values[leaf.index]
                assert value is not None
                return _tensor(value) if leaf.number is None else leaf.number(value.reshape(-1)[0].item())
            if isinstance(leaf, torch.device):
                return CPU
            if in_float64 and isinstance(leaf, torch.dtype) and leaf.is_floating_point:
                return torch.float64
            return leaf

        given = pytree.tree_map(leaf_of, dict(self.arguments))
        try:
            with torch.no_grad():
                if isinstance(self.target, torch._ops.OpOverload):
                    made = self.target(**given)
                else:
                    made = self.target(*given.values())
        except Exception as error:  # of any kind: torch's kernels say it in their own ways
            raise Undecided(f"{self.op} cannot be computed: {_line(error)}") from None
        return [to_array(part) for part in (made if isinstance(made, (tuple, list)) else [made])]


class Call(Node):
    """One call of an exported program. attributes: as ONNX has them, where `op` is an operator of ONNX."""

    operator: TorchOperator

    def __init__(
        self,
        op: str,
        name: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        operator: TorchOperator,
        index: int,
        attributes: Mapping[str, Any],
        random: bool,
    ) -> None:
        super().__init__(op, name, inputs, outputs, operator, index)
        self.attributes, self._random = attributes, random
        stated = {**operator.arguments, **attributes}
        self._numbers = {k: v for k, v in stated.items() if isinstance(v, float)}

    @property
    def random(self) -> bool:
        return self._random

    def attribute(self, name: str, default: Any = None) -> Any:
        return self.attributes.get(name, default)

    def numbers(self) -> Mapping[str, float]:
        return self._numbers


def to_array(value: Any) -> Array:
    """A tensor, or a number. Raises Undecided for what numpy has no type for."""
    if value is None:
        return np.zeros(0)
    if not isinstance(value, torch.Tensor):
        return np.asarray(value)
    if value.is_complex() or value.is_quantized or value.layout is not torch.strided:
        raise Undecided(f"a tensor of {value.dtype} in {value.layout}")
    value = value.detach().cpu().resolve_neg()
    if value.dtype == torch.bfloat16:
        import ml_dtypes

        bits: Array = value.contiguous().view(torch.int16).numpy()
        return bits.view(ml_dtypes.bfloat16)
    try:
        array: Array = value.numpy()
    except TypeError:
        raise Undecided(f"a tensor of {value.dtype}") from None
    return array


def _tensor(value: Array) -> torch.Tensor:
    """The same numbers; no operator here writes into what it reads."""
    if value.dtype.name == "bfloat16":
        return torch.from_numpy(np.ascontiguousarray(value).view(np.int16)).view(torch.bfloat16)
    writeable = value if value.flags.writeable and min(value.strides, default=0) >= 0 else value.copy()
    return torch.from_numpy(np.asarray(writeable))


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
