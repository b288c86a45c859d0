"""Benchmarks of relay_hf: named workloads, all contenders in one run, medians."""
