"""`python -m relay_hf.showcase`: the folder that the demo's model is downloaded to."""

from .smollm2 import cache

print(cache())
