"""Whether two models compute the same, and which step is to blame if not."""
