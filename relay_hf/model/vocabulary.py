"""Checks of token ids: each must have an embedding in the model, and a prefix must fit the model's context."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ..errors import TokenIdError
from .upstream.models import context_length

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check_vocabulary(model: PreTrainedModel, ids: Tensor, name: str) -> None:
    """Raise a TokenIdError that names the argument when an id has no embedding."""
    table = getattr(model.get_input_embeddings(), "weight", None)
    if table is None:
        return
    size, found = table.shape[0], ids.cpu().numpy()  # why numpy: see `on_host`
    if found.size and (found.min() < 0 or found.max() >= size):
        wrong = found[(found < 0) | (found >= size)][0]
        raise TokenIdError(
            f"{name} must be token ids from 0 to {size - 1}, the model's vocabulary; got {int(wrong)}. "
            "Is the tokenizer the model's own?"
        )


def check_prefix(model: PreTrainedModel, ids: Tensor, length: int, name: str) -> None:
    """Raise a ValueError that names the argument when `ids` are not the model's, or `length` is more than its context.

    `ids`: `[n]` int64, on the host.
    """
    check_vocabulary(model, ids, name)
    context = context_length(model.config.get_text_config(decoder=True))
    if context is not None and 0 < context < length:
        raise ValueError(f"{name} must fit the model's context of {context} tokens; got {length}. Shorten it.")
