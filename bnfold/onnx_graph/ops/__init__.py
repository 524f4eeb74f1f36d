"""What is known of each ONNX operator, by family."""
