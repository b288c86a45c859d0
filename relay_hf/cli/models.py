"""Loads the model and the tokenizer of a command, and turns failures into usage errors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from .console import REAL_MODEL, about, progress

if TYPE_CHECKING:
    from rich.console import Console

    from relay_hf.showcase import Showcase

    from .options import Dtype


_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


@contextmanager
def named(argument: str = "--model") -> Iterator[None]:
    """Within it errors of Transformers about a model's name become one line about `argument`."""
    advice = f"Give the path of a folder or a Hub id, such as {REAL_MODEL}, or random."
    with about(argument, advice, OSError, ValueError, ImportError):
        yield


def check_name(name: str | None, argument: str = "--model") -> None:
    """Refuse what is neither a folder nor can be a Hub id: Transformers takes the path of no folder for one.

    Raises:
        typer.BadParameter: it is neither.
    """
    if name is None or Path(name).is_dir() or _HUB_ID.fullmatch(name):
        return
    with named(argument):
        raise ValueError(f"{name} is no folder" if Path(name).exists() else f"there is no folder {name}")


def chat_model(console: Console) -> str:
    """The name of the demo's model, which is converted now if it never was; a line says so.

    Raises:
        typer.Exit: it has not been downloaded. Standard error has the command that does it, in a line to copy.
        typer.BadParameter: it can't be converted.
    """
    from relay_hf.showcase import smollm2

    if not smollm2.is_fetched():
        console.print(f"{smollm2.NAME} has not been downloaded. This downloads it (93 MB); or take --model random.")
        console.print(smollm2.command(), soft_wrap=True, markup=False, highlight=False)
        raise typer.Exit(2)
    if not smollm2.is_converted():
        console.print(f"Converting {smollm2.NAME}, once; it takes about 20 seconds ...")
    with about("--model", "Or take --model random.", OSError, ValueError, ImportError):
        smollm2.folder()
    return smollm2.NAME


def load_with_progress(model: str | None, *, tiny: bool = False, dtype: Dtype = "float32") -> Showcase:
    """A model with its tokenizer; progress is shown meanwhile.

    Args:
        model: a Hub id or a folder; "random"; None: the demo's chat model.
        tiny: the random model is to be tiny.
        dtype: of the weights.

    Raises:
        typer.BadParameter: there is no such model.
        typer.Exit: the demo's has not been downloaded.
    """
    check_name(model)
    console = progress()
    with console.status("loading torch, Transformers and the model ..."):
        import torch
        from transformers import AutoConfig

        from relay_hf import showcase
        from relay_hf.showcase import smollm2

        quiet()
        options: dict[str, Any] = {"dtype": getattr(torch, dtype)}
        if model == showcase.RANDOM:
            return showcase.load(model, size="tiny" if tiny else "small", **options)
        name = chat_model(console) if model is None or model == smollm2.NAME else model
        with named():
            AutoConfig.from_pretrained(showcase.path_of(name))  # without a network this gives up in half the time
            return showcase.load(name, **options)


def load_without_weights(model: str | None, tokenizer: str | None) -> Showcase:
    """A model of which only the configurations are read, and a tokenizer.

    Args:
        model: a Hub id or a folder; "random"; None: the demo's chat model where it is at hand, else the random one.
        tokenizer: a Hub id or a folder; None: the model's.

    Raises:
        typer.BadParameter: there is no such model, or no such tokenizer.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    from relay_hf import showcase
    from relay_hf.showcase import smollm2

    if model is None:
        model = smollm2.NAME if smollm2.is_converted() else showcase.RANDOM
    with torch.device("meta"):
        if model == showcase.RANDOM:
            shown = showcase.load(model, device="meta")
        else:
            with named():
                path = showcase.path_of(model)
                config = AutoConfig.from_pretrained(path)
                built = AutoModelForCausalLM.from_config(config, dtype=config.dtype or torch.float32).eval()
            with suppress(OSError):  # not every model has defaults for generate()
                built.generation_config = GenerationConfig.from_pretrained(path)
            with named("--model" if tokenizer is None else "--tokenizer"):
                words = AutoTokenizer.from_pretrained(tokenizer or path, padding_side="left")
            shown = showcase.Showcase(built, words, f"{type(built).__name__} as {model} configures it, no weights read")
    if tokenizer is not None and shown.is_random:
        with named("--tokenizer"):
            words = AutoTokenizer.from_pretrained(tokenizer, padding_side="left")
        shown = replace(shown, tokenizer=words)
    shown.tokenizer.pad_token = shown.tokenizer.pad_token or shown.tokenizer.eos_token
    return shown


def quiet() -> None:
    """Leave out warnings of Transformers and of the Hub's client, and the progress bar for weights."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    hub_logging.set_verbosity_error()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
