"""The CPU benchmark: named workloads, every contender, tables and plots.

`python -m benchmarks.cpu C1 C2`. What it times with is what `relay-hf bench` times a user's own model with.
"""
