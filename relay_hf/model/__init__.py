"""Facts about a patched model and about Transformers' insides. No other package reads their private fields."""
