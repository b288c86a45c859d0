"""`relay-hf bench`: how long generate() takes on a model of the user's, stock and patched, in turns within one run."""
