"""Exports a network to model.onnx, as a training project does at the end."""

import torch
from torch import nn


def network() -> nn.Module:
    """A small one, with the statistics that training would have left. Load your own weights here."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)),
    )
    with torch.no_grad():
        for _ in range(4):
            net(torch.rand(16, 3, 32, 32))  # in training mode: batch norms learn their statistics
    return net.eval()


if __name__ == "__main__":
    torch.onnx.export(network(), (torch.rand(1, 3, 32, 32),), "model.onnx", dynamo=True, verbose=False)
