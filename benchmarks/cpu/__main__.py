"""The command line: `python -m benchmarks.cpu C1 C2 --output out.json --plot out.png`."""

from relay_hf.cli.console import run_app

from .command import app

run_app(app, "python -m benchmarks.cpu")
