"""The program `relay-hf`: all commands together."""

from __future__ import annotations

from typing import Annotated

import typer

import relay_hf

from .benchmark.command import bench
from .console import help_of, run_app
from .demo import demo
from .doctor import doctor
from .explain import explain

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (demo, explain, bench, doctor):
    app.command(help=help_of(command), epilog=command.__dict__["examples"])(command)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"relay_hf {relay_hf.__version__}")
        raise typer.Exit


@app.callback(epilog="Start with [bold]relay-hf demo[/]. Each command has its own --help, with examples.")
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Hugging Face generate() that computes what the prompts of a batch share once, not once a row."""


def main() -> None:
    """Run the command line."""
    run_app(app, "relay-hf")
