"""The command line: `python -m benchmarks.cpu C1 C2 --output out.json --plot out.png`."""

from .command import app

app(prog_name="python -m benchmarks.cpu")
