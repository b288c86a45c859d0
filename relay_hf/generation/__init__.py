"""generate() on a patched model: decide what to share, prefill it once, hand over to Transformers' loop, report."""
