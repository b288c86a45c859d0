"""The columns of whole rows, `[padding | shared | own]`: which ones a mask shows, and how they are joined."""

from __future__ import annotations

from collections.abc import Sequence
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
        attention_mask: `[B, n]` over the caller's columns, with those of the coming forward; or None.

    Returns:
        `[B, n - offset]` bool, on the mask's device, or None.

    Raises:
        RelayError: the mask hides a token of the shared prefix, shows padding that was hidden before, or has another
            number of rows.
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


def join_columns(
    own: Tensor, axis: int, offset: int, own_start: Tensor | None, shared: Sequence[Sequence[Tensor]]
) -> Tensor:
    """Join shared and own columns to whole rows, with zeros in columns of padding.

    Args:
        own: `[B * n, ..., S, ...]`, the own columns along `axis`.
        axis: the axis of the columns.
        offset: columns before the own ones.
        own_start: `[B]`, leading own columns that hold no own token of the row; None for 0. A row's shared columns end
            where its own tokens begin.
        shared: the shared columns of each row, `[n, ..., P, ...]`, in pieces that follow each other.

    Returns:
        `[B * n, ..., offset + S, ...]`.
    """
    shape = list(own.shape)
    shape[axis] += offset
    whole = own.new_zeros(shape)
    whole.narrow(axis, offset, own.shape[axis]).copy_(own)
    by_row = whole.unflatten(0, (len(shared), -1))
    starts = [0] * len(shared) if own_start is None else own_start.tolist()
    for row, (start, pieces) in enumerate(zip(starts, shared, strict=True)):
        end = offset + start
        for piece in reversed(pieces):
            end -= piece.shape[axis]
            by_row[row].narrow(axis, end, piece.shape[axis]).copy_(piece)
    return whole
