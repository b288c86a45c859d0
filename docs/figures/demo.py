"""Draws demo.svg, the terminal after `make demo`: `python docs/figures/demo.py`.

The run is benchmarks/results/demo.json, which `relay-hf demo --json` has written; rich draws what the command would
print of it.
"""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI

from relay_hf.cli.demo_view import show

PATH = Path(__file__).with_suffix(".svg")
RESULT = Path(__file__).parents[2] / "benchmarks" / "results" / "demo.json"


def draw() -> str:
    """The picture."""
    out = Console(record=True, width=100, file=io.StringIO(), force_terminal=True, highlight=False)
    out.print("[bold]$ make demo[/]")
    show(json.loads(RESULT.read_text(encoding="utf-8")), out)
    svg = out.export_svg(title="relay_hf", theme=MONOKAI, unique_id="demo")
    # rich's picture fetches a font from the network, which a page must not do for it.
    return re.sub(r" *@font-face \{.*?\}\n", "", svg, flags=re.DOTALL)


if __name__ == "__main__":
    PATH.write_text(draw(), encoding="utf-8")
    print(PATH)
    sys.exit(0)
