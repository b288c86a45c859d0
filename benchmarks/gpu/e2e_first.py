"""When a call of one row shows its first token: as a streamer sees it, not when generate() returns.

A relayed call keeps its row before it returns, and a user who streams does not wait for that.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from transformers import TextIteratorStreamer


class Clock:
    """In the place of a tokenizer: notes when it is given tokens to decode for the first time.

    The streamer is Transformers' own: behind one of somebody else's, of which the relay can't know what it does to the
    model, a call keeps its prompt before it shows anything.

    Attributes:
        read_at: of `time.perf_counter`; None until then.
    """

    def __init__(self) -> None:
        self.read_at: float | None = None
        self.streamer = TextIteratorStreamer(self, skip_prompt=True)  # type: ignore[arg-type]

    def decode(self, tokens: Sequence[int], **options: Any) -> str:
        """No text."""
        if self.read_at is None:
            self.read_at = time.perf_counter()
        return ""
