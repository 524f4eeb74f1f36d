"""A change that reached a layer becomes new weights, in float64, within the range of their type."""
