"""What is known of a patched model and of Transformers. Nothing else reads their private fields."""
