"""Proving that a folded model is the original, tensor by tensor. It knows nothing of how folding is done."""
