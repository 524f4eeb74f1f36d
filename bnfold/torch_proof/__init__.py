"""Proving that two exported torch programs are the same."""
