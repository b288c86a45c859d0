"""CUDA graphs, on a stand-in that repeats a run on the CPU: same memory, same numbers, no Python of the model."""
