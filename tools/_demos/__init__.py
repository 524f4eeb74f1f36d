"""What tools/demo, tools/train_demo and tools/slim_demo run."""
