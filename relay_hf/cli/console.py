"""Output of all commands: text and JSON on standard output, progress and errors on standard error."""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import typer
from rich.console import Console

REAL_MODEL = "HuggingFaceTB/SmolLM2-360M-Instruct"
Command = TypeVar("Command", bound=Callable[..., None])


def output(quiet: bool = False) -> Console:
    """Standard output. `quiet`: nothing is printed, because JSON is asked for."""
    free = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if free else 100, quiet=quiet, highlight=False)


def progress() -> Console:
    """Standard error, for progress that disappears when the command ends."""
    return Console(stderr=True)


def print_json(content: Mapping[str, Any]) -> None:
    """Print one JSON document on standard output."""
    typer.echo(json.dumps(content, indent=2))


def examples(*lines: tuple[str, str]) -> Callable[[Command], Command]:
    """Add examples to the end of a command's help: a description, and the command line."""

    def give(command: Command) -> Command:
        text = "\n\n".join(f"[dim]# {what}[/]\n{line}" for what, line in lines)
        command.__dict__["examples"] = f"[bold]Examples[/]\n\n{text}"
        return command

    return give


def help_of(command: Callable[..., None]) -> str:
    """The docstring as paragraphs, without the line breaks of the source."""
    paragraphs = (inspect.getdoc(command) or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


@contextmanager
def about(argument: str, advice: str, *errors: type[Exception]) -> Iterator[None]:
    """Within it `errors` become a usage error of `argument`: the first line of their message, and `advice`."""
    try:
        yield
    except errors as error:
        said = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
        if isinstance(error, OSError) and error.filename:
            said = f"{error.strerror}: {error.filename}"
        raise typer.BadParameter(f"{said}. {advice}", param_hint=f"'{argument}'") from error
