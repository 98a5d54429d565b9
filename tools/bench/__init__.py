"""Benchmarks: operators and models on a CPU or a GPU, every implementation that is present timed in one run."""
