"""What tools/zoo, tools/zoo_torch and tools/zoo_tensorrt run."""
