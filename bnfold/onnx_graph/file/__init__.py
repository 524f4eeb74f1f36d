"""ONNX files: read with their weights on disk, written whole or not at all."""
