"""CUDA kernels of batch norm: framework-free sources (*.cuh), their launch table, their compiler."""
