"""Benchmark harness: correctness check, timing, memory, results, tables and plots. Independent of the benchmarks."""
