"""What tools/claims runs."""
