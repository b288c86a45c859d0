"""Transformers' mask functions, by which a relayed forward recognises what a layer may see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import Cache, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import causal_mask_function as causal_mask_function
from transformers.masking_utils import create_masks_for_generate
from transformers.masking_utils import sliding_window_causal_mask_function as sliding_window_mask

from .names import CACHE

__all__ = ["MaskRequest", "causal_mask_function", "makes_masks_ahead", "masks_for_generate", "sliding_window_mask"]

# The first arguments of a mask function, by their place.
_BY_PLACE = ("batch_size", "q_length", "kv_length", "q_offset", "kv_offset", "mask_function", "attention_mask")


class MaskRequest(NamedTuple):
    """The mask that a model asks for.

    Attributes:
        rows: number of rows of the batch.
        queries: number of queries of a row.
        columns: number of keys of a row.
        function: tells for a row, a head, a query and a key whether the query sees the key.
        window: tokens of the window, or of a chunk; None for neither.
        device: the device that the mask is made on.
    """

    rows: int
    queries: int
    columns: int
    function: Callable[..., Any]
    window: int | None
    device: torch.device | str

    @classmethod
    def of(cls, *given: Any, **named: Any) -> MaskRequest:
        """Read it from the arguments of a mask function."""
        named |= zip(_BY_PLACE, given, strict=False)
        rows, queries, columns = (named[name] for name in _BY_PLACE[:3])
        function = named.get("mask_function", causal_mask_function)
        return cls(rows, queries, columns, function, named.get("local_size"), named.get("device", "cpu"))


def makes_masks_ahead(model: PreTrainedModel, config: PreTrainedConfig) -> bool:
    """Whether generate() would make the masks of a decode step itself, for a model that it can compile."""
    # Layers on several devices get copies of masks, which the registry does not know.
    sharded = len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1
    chunked = getattr(config, "attention_chunk_size", None) is not None  # in 5.17 the function fails there
    own = hasattr(model, "create_masks_for_generate")
    return not (sharded or chunked or own) and bool(model._can_compile_fullgraph)


def masks_for_generate(model: PreTrainedModel, embeddings: Tensor, cache: Cache) -> Any:
    """The masks that generate() makes ahead of a forward of `embeddings` `[B, T, ...]` without padding."""
    return create_masks_for_generate(model.config, embeddings, attention_mask=None, **{CACHE: cache})
