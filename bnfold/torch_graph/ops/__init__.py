"""What is known of each ATen operator, by family."""
