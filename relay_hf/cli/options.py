"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from .console import REAL_MODEL

Dtype = Literal["float32", "bfloat16", "float16"]

MODEL_HELP = (
    f"A model of the Hub, such as {REAL_MODEL}, or the path of a folder, or random: weights that are drawn on the spot."
)
Model = Annotated[
    str | None,
    typer.Option(metavar="ID", help=f"{MODEL_HELP} Without it, the small chat model that make demo downloads."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output, and nothing else.")]
