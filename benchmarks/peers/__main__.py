"""The command line: `python -m benchmarks.peers C1 C2 --output out.json`."""

from relay_hf.cli.console import run_app

from .command import app

run_app(app, "python -m benchmarks.peers")
