"""What the tools that measure on a CPU run: tools/bench_fold and its neighbours, tools/precision."""
