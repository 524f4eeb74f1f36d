"""Stands for weights that you load: numbers in every batch norm, as if the network were trained."""

from typing import Any, TypeVar

import torch

Network = TypeVar("Network")


def trained(model: Network) -> Network:
    """The same network for inference, its batch norms with random statistics, scales and shifts."""
    torch.manual_seed(0)
    for module in model.modules():  # type: ignore[attr-defined]
        for mean, variance in (("running_mean", "running_var"), ("moving_mean", "moving_variance")):
            if getattr(module, variance, None) is not None:
                _draw(getattr(module, mean), -0.3, 0.3)
                _draw(getattr(module, variance), 0.5, 1.5)
                for scale in ("weight", "gamma"):
                    _draw(getattr(module, scale, None), 0.5, 1.5)
                for shift in ("bias", "beta"):
                    _draw(getattr(module, shift, None), -0.3, 0.3)
    return model.eval()  # type: ignore[attr-defined,no-any-return]


def _draw(value: Any, low: float, high: float) -> None:
    """Into a tensor, or a variable of Keras."""
    tensor = getattr(value, "value", value)
    if tensor is not None:
        with torch.no_grad():
            tensor.uniform_(low, high)
