"""What tools/zoo, tools/zoo_torch, tools/zoo_tensorrt and tools/zoo_convert run."""
