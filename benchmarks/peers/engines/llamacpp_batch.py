"""A batch of llama.cpp: tokens with their positions and sequences, in memory that llama.cpp reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import llama_cpp.llama_cpp as lib


class Batch:
    """A batch that is filled anew for each call of the model; `room`: the most tokens that it can hold."""

    def __init__(self, room: int) -> None:
        self._batch = lib.llama_batch_init(room, 0, 1)

    def __del__(self) -> None:
        lib.llama_batch_free(self._batch)

    def clear(self) -> None:
        """Take all tokens out."""
        self._batch.n_tokens = 0

    def add(self, ids: Sequence[int], start: int, sequence: int, last: bool) -> None:
        """Add tokens of a sequence from position `start` on; `last`: the logits of the last one are wanted."""
        batch = self._batch
        for position, token in enumerate(ids, start):
            place = batch.n_tokens
            batch.token[place], batch.pos[place] = token, position
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, sequence
            batch.logits[place] = last and position == start + len(ids) - 1
            batch.n_tokens = place + 1

    def decode(self, context: Any) -> None:
        """Run the model on it.

        Raises:
            RuntimeError: llama.cpp can't.
        """
        if failed := lib.llama_decode(context, self._batch):
            raise RuntimeError(f"llama_decode() gave {failed} for {self._batch.n_tokens} tokens.")
        lib.llama_synchronize(context)
