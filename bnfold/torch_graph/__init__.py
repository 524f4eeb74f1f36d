"""Torch in and out: what the solver sees of an exported program, and a plan applied to it."""
