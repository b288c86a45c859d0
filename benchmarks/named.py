"""What the commands of `benchmarks.cpu` and `benchmarks.peers` have in common: named workloads, and their typer app."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import typer

from benchmarks.cpu.workloads import NamedWorkload
from relay_hf.cli.console import about, help_of


def workload_of(
    workloads: Mapping[str, NamedWorkload], name: str, changes: Mapping[str, int | None], **more: Any
) -> NamedWorkload:
    """The workload of a name, with the numbers that a caller gave, and `more` of its fields.

    Raises:
        typer.BadParameter: there is no such workload, or its groups do not fit the numbers.
    """
    if name not in workloads:
        advice = f"there is no {name!r}. Choose among {', '.join(workloads)}; --list describes them."
        raise typer.BadParameter(advice, param_hint="'WORKLOAD'")
    given = {field: value for field, value in changes.items() if value is not None}
    with about("--rows", f"Workload {name} has groups of prompts.", ValueError):
        return dataclasses.replace(workloads[name], **given, **more)


def app_of(command: Callable[..., None]) -> typer.Typer:
    """The app of one command, whose examples `relay_hf.cli.console.examples` has noted."""
    app = typer.Typer(
        add_completion=False,
        rich_markup_mode="rich",
        pretty_exceptions_show_locals=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.command(help=help_of(command), epilog=command.__dict__["examples"])(command)
    return app
