"""Options on argparse: files to write, judged before anything is measured, and options that would be ignored."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from relay_hf.cli.benchmark.arguments import WRITABLE
from relay_hf.cli.console import said
from relay_hf.cli.output_file import check_writable


def output_file(text: str) -> Path:
    """A file that can be written; `type=output_file` of an option.

    Raises:
        argparse.ArgumentTypeError: it can't be.
    """
    path = Path(text)
    try:
        check_writable(path)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{said(error)}. {WRITABLE}") from error
    return path


def refuse(parser: argparse.ArgumentParser, arguments: argparse.Namespace, names: Iterable[str], why: str) -> None:
    """End with a usage error if an option that would be ignored has another value than its default.

    Args:
        parser: knows the defaults.
        arguments: what it has parsed.
        names: of the options, as attributes.
        why: a clause, such as `--case runs one case`.
    """
    for name in names:
        if getattr(arguments, name) != parser.get_default(name):
            parser.error(f"{why}; leave --{name.replace('_', '-')} out")
