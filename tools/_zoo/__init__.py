"""What tools/zoo, tools/zoo_torch, tools/zoo_tensorrt, tools/zoo_convert and tools/mutants run."""
