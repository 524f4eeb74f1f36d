"""What a change of one tensor asks of the others: one function a role, and the search that spreads it."""
