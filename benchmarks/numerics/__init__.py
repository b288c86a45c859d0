"""How far half precision is from float32, for stock and for the patched model: `python -m benchmarks.numerics`."""
