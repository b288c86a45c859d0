"""Which of the caller's columns a RelayCache's rows may attend to, read from an attention mask."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..errors import RelayError
from ..model.device import on_host

if TYPE_CHECKING:
    from .row_layout import RowLayout


def own_columns(rows: RowLayout, attention_mask: Tensor | None) -> Tensor | None:
    """The own columns that may be attended to, from the caller's mask; None where only left padding is masked.

    Args:
        rows: how the rows of the cache lie in the columns.
        attention_mask: `[B, n]` over the caller's columns, those of the coming forward included; or None.

    Returns:
        `[B, n - offset]` bool, where the mask is, or None.

    Raises:
        RelayError: the mask hides a token of the shared prefix, shows padding that was hidden before, or is of other
            rows.
    """
    if attention_mask is None:
        if rows.padded:
            raise RelayError("the rows of this RelayCache are padded: attention_mask is needed")
        return None
    if attention_mask.dim() != 2:
        raise RelayError(
            f"attention_mask must be [rows, columns]; got {attention_mask.dim()} dimensions. For a mask of your "
            "own pass what the cache's to_dynamic() returns."
        )
    attended = on_host(attention_mask)
    if rows.own_start is not None and len(attended) != len(rows.own_start):
        raise RelayError(f"attention_mask has {len(attended)} rows, and this RelayCache {len(rows.own_start)}")
    columns = np.arange(attended.shape[1])
    own_start = 0 if rows.own_start is None else rows.own_start.cpu().numpy()[:, None]
    prefix_end = rows.offset + own_start
    before_own = columns < prefix_end
    in_prefix = before_own & (columns >= prefix_end - np.array(rows.shared_lengths)[:, None])
    if ((attended & before_own) != in_prefix).any():
        raise RelayError("attention_mask differs from the padding that this RelayCache was filled with")
    if (attended | before_own).all():
        return None
    return torch.from_numpy(attended[:, rows.offset :]).to(attention_mask.device)
