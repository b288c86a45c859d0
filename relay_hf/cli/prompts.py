"""Prompts from a file or standard input."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import typer

from .console import about

_ARGUMENT = "'PROMPTS'"


def read_prompts(source: Path, field: str | None) -> list[str]:
    """The prompts of a file, one a line; `-` is standard input.

    Args:
        source: the file.
        field: lines are JSON objects, and the prompt is in this field; None: lines are prompts.

    Raises:
        typer.BadParameter: no such file, no prompts, or a line without the field.
    """
    advice = "Give a text file with a prompt in each line, or - for standard input."
    with about("PROMPTS", advice, OSError, UnicodeDecodeError):
        text = sys.stdin.read() if str(source) == "-" else source.read_text(encoding="utf-8")
    lines = [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    if not lines:
        raise typer.BadParameter(f"{source} has no prompts. {advice}", param_hint=_ARGUMENT)
    return [line if field is None else _from_json(line, field, f"line {number} of {source}") for number, line in lines]


def _from_json(line: str, field: str, where: str) -> str:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise typer.BadParameter(f"{where} is no JSON: {error}.", param_hint=_ARGUMENT) from error
    if not isinstance(found, dict) or not isinstance(found.get(field), str):
        has = f"the fields {', '.join(found)}" if isinstance(found, dict) else type(found).__name__
        advice = f"{where} has no text in the field {field!r}; it has {has}. Name another with --jsonl."
        raise typer.BadParameter(advice, param_hint=_ARGUMENT)
    return str(found[field])
