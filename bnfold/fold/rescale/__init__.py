"""Carrying channels at other sizes: for int8 ranges, and for half precision."""
