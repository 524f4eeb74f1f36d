"""A float32 model becomes a float16 or bfloat16 one, node by node."""
