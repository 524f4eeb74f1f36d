"""Rules of the fold, each broken once on purpose, on a small model where that matters."""
