"""Kept prefixes in a file."""
