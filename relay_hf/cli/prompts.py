"""Prompts of a file or standard input: lines, blocks between separators, or JSON lines of text or chat messages."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import about, refuse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

Prompt = str | list[dict[str, Any]]  # a text, or the messages of a chat

Jsonl = Annotated[
    str | None,
    typer.Option(
        metavar="FIELD",
        help="Lines are JSON objects. This field has the prompt: a text, or a list of chat messages with role and "
        "content, which the tokenizer's chat template renders.",
    ),
]
Separator = Annotated[
    str | None,
    typer.Option(
        metavar="LINE",
        help="Prompts have several lines, and a line with this alone stands between them; an empty one: blank lines.",
    ),
]
Tokenizer = Annotated[
    str | None,
    typer.Option(
        metavar="ID",
        help="Hub id or folder of a tokenizer. Without it, the model's.",
    ),
]

_ARGUMENT = "'PROMPTS'"


def read_prompts(
    context: typer.Context, source: Path | None, jsonl: str | None, separator: str | None
) -> list[Prompt] | None:
    """The prompts of a file; None where no file is given.

    Args:
        context: of the command, which has the options `--jsonl` and `--separator`.
        source: the file; `-` is standard input.
        jsonl: lines are JSON objects, and the prompt is in this field; None: they are text.
        separator: the line between prompts, without which each line is one.

    Raises:
        typer.BadParameter: no such file, no prompts, a line without the field, or an option that would be ignored.
    """
    if source is None:
        refuse(context, {"jsonl", "separator"}, "without PROMPTS no file is read")
        return None
    if jsonl is not None:
        refuse(context, {"separator"}, "with --jsonl each line is a prompt")
    advice = "Give a text file with a prompt in each line, or - for standard input."
    with about("PROMPTS", advice, OSError, UnicodeDecodeError):
        text = sys.stdin.read() if str(source) == "-" else source.read_text(encoding="utf-8")
    text = text.removeprefix("\ufeff")  # a mark that some editors write, and no word of the first prompt
    lines = text.split("\n")  # str.splitlines() also splits at signs that may stand in a prompt
    found: list[Prompt] = []
    if jsonl is not None:
        places = [(line, f"line {number} of {source}") for number, line in enumerate(lines, start=1) if line.strip()]
        found = [_from_json(line, jsonl, place) for line, place in places]
    else:
        texts = lines if separator is None else _between(lines, separator)
        found += [text for text in texts if text.strip()]
        if found and all(re.fullmatch(r"\s*\{.*\}\s*", text) for text in texts if text.strip()):
            note = f"each line of {source} looks like a JSON object, and is taken as text"
            typer.echo(f"Note: {note}. --jsonl FIELD takes the prompt from a field.", err=True)
    if not found:
        raise typer.BadParameter(f"{source} has no prompts. {advice}", param_hint=_ARGUMENT)
    return found


def token_ids(prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase) -> list[Tensor]:
    """The ids of each prompt, `[n]` int64, on the host.

    A text gets the tokenizer's special tokens, and a chat those of its template alone.

    Raises:
        typer.BadParameter: a chat can't be rendered, or a prompt has no tokens.
    """
    import torch
    from jinja2 import TemplateError

    if tokenizer.chat_template is None and not all(isinstance(prompt, str) for prompt in prompts):
        advice = "Give that of a chat model by --model or --tokenizer, or name a field of text with --jsonl."
        raise typer.BadParameter(
            f"it has chat messages, and the tokenizer has no chat template. {advice}", param_hint=_ARGUMENT
        )
    found = []
    for number, prompt in enumerate(prompts, start=1):
        if isinstance(prompt, str):
            ids = tokenizer(prompt)["input_ids"]
        else:
            advice = f"Prompt {number} does not fit the tokenizer's chat template."
            with about("PROMPTS", advice, TemplateError, TypeError, ValueError):
                text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if not ids:
            raise typer.BadParameter(f"prompt {number} has no tokens. Leave it out.", param_hint=_ARGUMENT)
        found.append(torch.tensor(ids, device="cpu"))
    return found


def padded(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Ids and mask `[rows, tokens]`, int64, padded on the left; `rows`: the ids of each, `[n]`."""
    from torch.nn.utils.rnn import pad_sequence

    ids, mask = (
        pad_sequence(list(each), batch_first=True, padding_side="left")
        for each in (rows, [row.new_ones(len(row)) for row in rows])
    )
    return ids, mask


def _between(lines: list[str], separator: str) -> list[str]:
    """The text between lines that hold the separator alone, without the blank lines at its ends."""
    blocks: list[list[str]] = [[]]
    for line in lines:
        if line.strip() == separator.strip():
            blocks.append([])
        else:
            blocks[-1].append(line)
    return ["\n".join(block).strip("\n") for block in blocks]


def _from_json(line: str, field: str, place: str) -> Prompt:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise typer.BadParameter(f"{place} is no JSON: {error}.", param_hint=_ARGUMENT) from error
    prompt = found.get(field) if isinstance(found, dict) else None
    if isinstance(prompt, str) or (isinstance(prompt, list) and prompt and all(map(_is_message, prompt))):
        return prompt
    has = f"the fields {', '.join(found)}" if isinstance(found, dict) else type(found).__name__
    advice = "Name another with --jsonl. A message is an object with role and content."
    raise typer.BadParameter(
        f"{place} has neither text nor chat messages in the field {field!r}; it has {has}. {advice}",
        param_hint=_ARGUMENT,
    )


def _is_message(found: Any) -> bool:
    return isinstance(found, dict) and isinstance(found.get("role"), str) and "content" in found
