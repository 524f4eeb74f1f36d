"""What tools/gpu_check and tools/bench_kernels run."""
