"""A model to try things on: a small chat model, a Llama of random weights, or any model of the Hub or a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BatchEncoding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from . import smollm2
from .random_model import Size, build, build_tokenizer
from .texts import Chat, as_text

RANDOM = "random"


@dataclass(frozen=True)
class Showcase:
    """A model with its tokenizer.

    Attributes:
        model: in eval mode.
        tokenizer: pads on the left.
        about: one line for the reader: what the model is, and whether its text means anything.
        is_random: its weights are random, and its text is noise.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    about: str
    is_random: bool = False

    def inputs(self, chats: list[Chat]) -> BatchEncoding:
        """The tensors of generate(), `[conversations, tokens]`, each conversation in the model's own chat format."""
        if self.tokenizer.chat_template is None:
            found = self.tokenizer([as_text(chat) for chat in chats], padding=True, return_tensors="pt")
        else:
            found = self.tokenizer.apply_chat_template(
                chats, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
            )
        return found.to(self.model.device)

    def texts(self, tokens: Tensor) -> list[str]:
        """The words of new tokens `[rows, tokens]`, a text for each row, without the marks of the chat format."""
        return [text.strip() for text in self.tokenizer.batch_decode(tokens, skip_special_tokens=True)]


def load(
    model: str | Path = smollm2.NAME,
    *,
    size: Size | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device | None = None,
) -> Showcase:
    """A model and a tokenizer to try things on.

    Args:
        model: the default is a chat model of 135 million parameters, which is downloaded beforehand (see `smollm2`);
            "random" builds a Llama of random weights, the same at every call, that never ends a sequence by itself, and
            whose text is noise; anything else is a Hub id or a local path.
        size: of the model that is built: a key of `SIZES`; None: "small". For "random" alone.
        dtype: of the weights.
        device: where the model goes; None: a CUDA device if there is one.

    Raises:
        ValueError: `size` is unknown, or given for another model than "random".
        OSError: Transformers finds no such model; of the default one, the message has the command that downloads it.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    name = str(model)
    if name == RANDOM:
        tokenizer = build_tokenizer()
        built = build(size or "small", len(tokenizer)).to(device, dtype).eval()
        about = f"a Llama of {_parameters(built)} random weights, built on the spot: its text is noise"
        return Showcase(built, tokenizer, about, is_random=True)
    if size is not None:
        raise ValueError(f"size is of the model that is built, {RANDOM!r}; got {size!r} for {name}.")
    path = path_of(name)
    loaded = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).to(device).eval()
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return Showcase(loaded, tokenizer, f"{name}, a {type(loaded).__name__} of {_parameters(loaded)} parameters")


def path_of(name: str) -> str:
    """What from_pretrained() takes for a model's name: the chat model's folder, or the name itself.

    Raises:
        OSError, ValueError, ImportError: the chat model can't be made; see `smollm2.folder`.
    """
    return str(smollm2.folder()) if name == smollm2.NAME else name


def _parameters(model: PreTrainedModel) -> str:
    """Their number, in words."""
    millions = model.num_parameters() / 1e6
    return f"{millions:,.0f} million" if millions >= 10 else f"{millions:.1f} million"
