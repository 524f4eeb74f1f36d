"""What is done to a folded model. None of them imports another."""
