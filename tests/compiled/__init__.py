"""Decode steps that torch.compile has compiled."""
