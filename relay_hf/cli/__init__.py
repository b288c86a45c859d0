"""The command line, `relay-hf`. A command imports torch and Transformers when it runs, so that `--help` is fast."""

from .app import main

__all__ = ["main"]
