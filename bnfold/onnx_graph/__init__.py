"""ONNX models: their files, their meaning to the solver, and running them."""
