"""Channels that are constant or that nobody reads: found by proof, and taken out of all layers they pass."""
