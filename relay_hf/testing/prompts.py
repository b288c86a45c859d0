"""Prompts for the tiny model: rows that share a prefix, as token ids and a mask."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

VOCABULARY = 97
PAD = 0


def prompts(prefix: int, own: Sequence[int], seed: int = 0) -> dict[str, Tensor]:
    """Rows that share `prefix` tokens and go on for `own[b]` of their own, left-padded to one width.

    Returns:
        `input_ids` and `attention_mask`, `[len(own), prefix + max(own)]`, as a tokenizer gives them.
    """
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randint(3, VOCABULARY, (prefix,), generator=generator, device="cpu")
    width = prefix + max(own)
    input_ids = torch.full((len(own), width), PAD, device="cpu")
    attention_mask = torch.zeros_like(input_ids)
    for row, length in enumerate(own):
        rest = torch.randint(3, VOCABULARY, (length,), generator=generator, device="cpu")
        if length:
            rest[0] = 3 + row % (VOCABULARY - 3)  # rows part exactly after the prefix
        input_ids[row, width - prefix - length :] = torch.cat([shared, rest])
        attention_mask[row, width - prefix - length :] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}
