"""The command line, `relay-hf`. What a command computes with is imported when it runs: `--help` waits for nothing."""

from .app import main

__all__ = ["main"]
