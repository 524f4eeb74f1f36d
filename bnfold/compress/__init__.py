"""Smaller networks, by what batch norms tell of them. `slim` needs torch-pruning (extra `compress`)."""

from bnfold.compress.penalty import gamma_penalty
from bnfold.compress.report import SlimReport
from bnfold.compress.slim import prunable, slim

__all__ = ["SlimReport", "gamma_penalty", "prunable", "slim"]
