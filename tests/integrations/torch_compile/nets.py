"""A small network for torch.compile, and compilers of graphs that note what they get."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from tests.torch_graph.modules import randomize

__all__ = ["Compiled", "compiled", "error", "fresh", "net", "x"]


def net(seed: int = 0) -> nn.Sequential:
    """Two batch norms, one of them behind a pool; both fold."""
    torch.manual_seed(seed)
    layers = (nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AvgPool2d(2), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1))
    return randomize(nn.Sequential(*layers, nn.BatchNorm2d(4)))  # type: ignore[return-value]


def x(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 8, 8)


@pytest.fixture
def fresh() -> Iterator[None]:
    """Nothing is compiled yet, and no reason was logged."""
    from bnfold.integrations.torch_compile import backend

    torch.compiler.reset()
    backend._said.clear()
    yield
    torch.compiler.reset()


class Compiled:
    """A module compiled with bnfold.

    norms: how many batch norms each graph had that was handed on. Unlike "eager", this compiler is not known
    to read weights at each call, so that a new fold is handed on again. Folds are not checked, unless the
    options say so: the tests compare with the module.
    """

    def __init__(self, module: Any, **options: Any) -> None:
        self.module, self.norms = module, list[int]()
        keywords = {name: options.pop(name) for name in ("dynamic", "fullgraph") if name in options}
        how: dict[str, Any] = {"backend": self._compile, "verify": False, **options}
        self.run: Callable[..., Any] = torch.compile(module, backend=_backend, options=how, **keywords)

    def _compile(self, graph: fx.GraphModule, arguments: list[Any], **_: Any) -> Callable[..., Any]:
        self.norms.append(sum("batch_norm" in str(node.target) for node in graph.graph.nodes))
        return graph.forward

    def __call__(self, *arguments: Any) -> Any:
        return self.run(*arguments)

    def error(self, batch: Tensor) -> float:
        """Of what it computes, against the module itself."""
        return error(self.run, self.module, batch)


def compiled(module: Any, **options: Any) -> Compiled:
    return Compiled(module, **options)


def error(run: Any, module: Any, batch: Tensor) -> float:
    wanted = module(batch)
    return float(((run(batch) - wanted).abs().max() / wanted.abs().max()).detach())


def _backend(graph: fx.GraphModule, arguments: list[Any], **keywords: Any) -> Callable[..., Any]:
    from bnfold.integrations.torch_compile.backend import backend

    return backend(graph, arguments, **keywords)
