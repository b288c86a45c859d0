"""relay_hf beside other engines on the same weights and token ids, each in an environment and a process of its own.

`python -m benchmarks.peers C1`. `make peers` makes the environments.
"""
