"""Output of all commands: text and JSON on standard output, progress and errors on standard error."""

from __future__ import annotations

import errno
import inspect
import json
import os
import sys
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import typer
from rich.console import Console
from typer.core import TyperArgument

REAL_MODEL = "HuggingFaceTB/SmolLM2-360M-Instruct"
_NO_MORE_OUTPUT = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
Command = TypeVar("Command", bound=Callable[..., None])


def run_app(app: typer.Typer, name: str) -> None:
    """Run a command line to its end. Where standard output takes no more, it ends with exit code 1.

    Of a full disk a line says so on standard error. A closed pipe is quiet, which typer and rich see to.
    """
    try:
        app(prog_name=name)
    except OSError as error:
        if error.errno not in _NO_MORE_OUTPUT or error.filename is not None:  # of something else
            raise
        typer.echo(f"{name}: standard output can't be written: {error.strerror}.", err=True)
        sys.exit(1)


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


def refuse(context: typer.Context, names: Container[str], why: str) -> None:
    """Refuse parameters of a command that would be ignored; `why`: a clause, such as `--list only describes`.

    Raises:
        typer.BadParameter: one of `names` was given on the command line.
    """
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name in names and source is not None and source.name == "COMMANDLINE":
            shown = parameter.metavar if isinstance(parameter, TyperArgument) else parameter.opts[0]
            raise typer.BadParameter(f"{why}; leave {shown} out.", param_hint=f"'{shown}'")


@contextmanager
def about(argument: str, advice: str, *errors: type[Exception]) -> Iterator[None]:
    """Within it `errors` become a usage error of `argument`: the first line of their message, and `advice`."""
    try:
        yield
    except errors as error:
        raise typer.BadParameter(f"{said(error)}. {advice}", param_hint=f"'{argument}'") from error


def said(error: Exception) -> str:
    """An error in a line, without a full stop: of the system's the reason and the path, of others their first line."""
    if isinstance(error, OSError) and error.filename:
        return f"{error.strerror}: {error.filename}"
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
