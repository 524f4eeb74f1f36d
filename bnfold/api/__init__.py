"""The public functions, one module each. Empty on purpose: its modules have the functions' names."""
