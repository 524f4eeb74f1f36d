"""Running models: inputs, onnxruntime, the reference evaluator, two models side by side."""
