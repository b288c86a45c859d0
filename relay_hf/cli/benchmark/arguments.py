"""Options of the commands that time generate(), and their checks before anything runs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..console import about
from ..output_file import check_writable

if TYPE_CHECKING:
    from torch import Tensor

    from .contenders import Contender
    from .record import Record
    from .workload import Workload

# Who `relay-hf bench` can compare. The names stand here, too, because completion can't wait for torch.
NAMES = ("stock", "static-cache", "prefix-copied", "relay-cold", "relay-kept")
PROMPTS, FILES = "The prompts", "What is written"  # panels of the help
WRITABLE = "Give a file in a folder that exists and that you may write to."

Device = Annotated[
    Literal["cpu", "cuda"] | None, typer.Option(help="Where it runs; without it, on a CUDA device if there is one.")
]
Rounds = Annotated[int, typer.Option(min=1, metavar="N", help="Calls of each contender, of which the median is shown.")]
Policy = Annotated[Literal["auto", "always", "off"], typer.Option(help="Of the patched model.")]
Threads = Annotated[int | None, typer.Option(min=1, metavar="N", help="Torch's threads; without it, torch's choice.")]
Output = Annotated[
    Path | None,
    typer.Option("--output", dir_okay=False, help="Write the JSON here, too: every round.", rich_help_panel=FILES),
]


def _prompts(text: str, least: int = 1) -> Any:
    return typer.Option(min=least, metavar="N", help=text, rich_help_panel=PROMPTS)


# Each command has its own defaults of these.
ROWS = _prompts("Prompts.")
PREFIX = _prompts("Tokens that all prompts start with.", least=0)
OWN = _prompts("Tokens that each prompt ends with.")
NEW = _prompts("Tokens of each answer.")


def set_threads(threads: int | None) -> None:
    """Give torch so many threads; None: as many as it likes."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)


def device_of(wanted: Literal["cpu", "cuda"] | None) -> Literal["cpu", "cuda"]:
    """The device that is wanted, or a CUDA device if there is one.

    Raises:
        typer.BadParameter: a CUDA device is wanted, and there is none.
    """
    import torch

    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        advice = "torch sees no CUDA device; leave --device out. relay-hf doctor says what there is."
        raise typer.BadParameter(advice, param_hint="'--device'")
    return wanted or ("cuda" if there else "cpu")


def contenders_of(text: str | None, known: Mapping[str, Contender]) -> dict[str, Contender]:
    """Those whose names stand in `text`, separated by commas; None: all that are known.

    Raises:
        typer.BadParameter: there is no contender of a name.
    """
    names = [*known] if text is None else [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in known]
    if unknown:
        advice = f"there is no {unknown[0]!r}. Choose among {', '.join(known)}, separated by commas."
        raise typer.BadParameter(advice, param_hint="'--contenders'")
    return {name: known[name] for name in names}


def complete_contenders(incomplete: str) -> list[str]:
    """What a shell offers for a list of contenders, of which the last name may be incomplete."""
    *given, last = incomplete.split(",")
    return [",".join([*given, name]) for name in NAMES if name.startswith(last) and name not in given]


def fitting(contenders: Mapping[str, Contender], workload: Workload, what: str) -> dict[str, Contender]:
    """The contenders that say anything of a workload; `what`: the workload in words.

    Raises:
        typer.BadParameter: none of them does.
    """
    found = {name: each for name, each in contenders.items() if each.fits(workload)}
    if not found:
        raise typer.BadParameter(
            f"none of {', '.join(contenders)} says anything of {what}.", param_hint="'--contenders'"
        )
    return found


def check_prompts(source: Path) -> None:
    """Refuse the name of a workload of a checkout where no such file is.

    Raises:
        typer.BadParameter: it is one.
    """
    if re.fullmatch(r"C\d|small|smoke(-tree)?", str(source)) and not source.exists():
        advice = f"Give a file of prompts. The workload {source} of a checkout runs by: make bench BENCH={source}"
        raise typer.BadParameter(f"there is no file {source}. {advice}", param_hint="'PROMPTS'")


def check_ids(prompt_ids: Sequence[Tensor], vocab: int) -> None:
    """Refuse token ids that a model of `vocab` tokens has no embedding for; `prompt_ids`: of each prompt, `[n]`.

    Raises:
        typer.BadParameter: there is one.
    """
    largest = max(int(ids.max()) for ids in prompt_ids)
    if largest >= vocab:
        advice = "Give the model's own tokenizer, or leave one of the two out."
        raise typer.BadParameter(
            f"token {largest} has no embedding in a model of {vocab} tokens. {advice}", param_hint="'--tokenizer'"
        )


def check_file(argument: str, path: Path | None) -> None:
    """Refuse a file that can't be written, before anything is measured.

    Raises:
        typer.BadParameter: it can't be.
    """
    if path is not None:
        with about(argument, WRITABLE, OSError):
            check_writable(path)


def with_gpu(content: Record, device: str) -> Record:
    """A result of a CUDA device names it."""
    if device == "cuda":
        import torch

        content["hardware"]["gpu"] = torch.cuda.get_device_name()
    return content
