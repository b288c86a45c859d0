"""Loads the model and the tokenizer of a command, and turns failures into usage errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .console import REAL_MODEL, about, progress

if TYPE_CHECKING:
    from relay_hf.showcase import Showcase

    from .options import Dtype


@contextmanager
def named(argument: str = "--model") -> Iterator[None]:
    """Within it errors of Transformers about a model's name become one line about `argument`."""
    advice = f"Give the path of a folder or a Hub id, such as {REAL_MODEL}; without {argument} nothing is downloaded."
    with about(argument, advice, OSError, ValueError, ImportError):
        yield


def load_with_progress(model: str | None, *, tiny: bool = False, dtype: Dtype = "float32") -> Showcase:
    """A model with its tokenizer. Progress is shown meanwhile, and one line where a model is converted.

    Args:
        model: a Hub id or a folder; "random"; None: the demo's chat model.
        tiny: the random model is to be tiny.
        dtype: of the weights.

    Raises:
        typer.BadParameter: there is no such model, or the demo's has not been downloaded.
    """
    console = progress()
    with console.status("loading torch, Transformers and the model ..."):
        import torch
        from transformers import AutoConfig

        from relay_hf import showcase
        from relay_hf.showcase import smollm2

        quiet()
        options: dict[str, Any] = {"dtype": getattr(torch, dtype)}
        if model is None:
            if smollm2.is_fetched() and not smollm2.is_converted():
                console.print(f"Converting {smollm2.NAME}, once; it takes about 20 seconds ...")
            with about("--model", "Or take --model random.", OSError, ValueError, ImportError):
                return showcase.load(**options)
        if model == showcase.RANDOM:
            return showcase.load(model, size="tiny" if tiny else "small", **options)
        with named():
            AutoConfig.from_pretrained(model)  # without a network this gives up first, in half the time
            return showcase.load(model, **options)


def load_without_weights(model: str | None, tokenizer: str | None) -> Showcase:
    """A model of which only the configurations are read, and a tokenizer.

    Raises:
        typer.BadParameter: there is no such model, or no such tokenizer.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    from relay_hf import showcase

    with torch.device("meta"):
        if model is None:
            shown = showcase.load(showcase.RANDOM, device="meta")
        else:
            with named():
                config = AutoConfig.from_pretrained(model)
                built = AutoModelForCausalLM.from_config(config, dtype=config.dtype or torch.float32).eval()
            with suppress(OSError):  # not every model has defaults for generate()
                built.generation_config = GenerationConfig.from_pretrained(model)
            with named("--model" if tokenizer is None else "--tokenizer"):
                words = AutoTokenizer.from_pretrained(tokenizer or model, padding_side="left")
            shown = showcase.Showcase(built, words, f"{type(built).__name__} as {model} configures it, no weights read")
    if tokenizer is not None and model is None:
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
