"""tools/kernel_cost: what the kernels cost by their compiled code, and which times a model makes of it."""
