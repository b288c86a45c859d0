"""Bytes: what a decode step must read, so its floor, and what the KV of a contender takes. Arithmetic only."""

from __future__ import annotations

import math
from dataclasses import dataclass

from relay_hf.cli.benchmark.timed_model import ModelShape
from relay_hf.cli.benchmark.workload import Workload

PAGE = 256  # tokens of a block of continuous batching, as Transformers has it
_COPYING = 3  # DynamicCache reads all KV and writes it again to append a token, then attention reads it

FLOOR = (
    "floor of a decode step: (all weights but the embedding's, own KV of all rows at its mean length, the shared KV "
    "once) / copy bandwidth of this run; stock's has the shared KV once a row, and three times over where it is copied"
)


@dataclass(frozen=True)
class Bytes:
    """Of a model of this shape, with `itemsize` bytes an element."""

    shape: ModelShape
    itemsize: int = 2

    @property
    def token(self) -> int:
        """KV of a token in all layers."""
        return self.shape.layers * 2 * self.shape.kv_heads * self._head_size * self.itemsize

    @property
    def weights(self) -> int:
        """What a step reads of them: of the embedding a row for each token only, which is left out; the head whole."""
        hidden, shape = self.shape.hidden, self.shape
        attention = 2 * hidden * (shape.heads + shape.kv_heads) * self._head_size
        layer = attention + 3 * hidden * shape.intermediate + 2 * hidden
        return self.itemsize * (shape.layers * layer + hidden + shape.vocab * hidden)

    def step(self, workload: Workload) -> int:
        """What the decode step of mean length reads, everything once."""
        return self.weights + (workload.prefix + workload.rows * _mean_own(workload)) * self.token

    def stock_step(self, workload: Workload, copying: bool) -> int:
        """The same with the prefix stored, and so read, once a row; `copying`: as a DynamicCache does it."""
        kv = workload.rows * (workload.prefix + _mean_own(workload)) * self.token
        return self.weights + (_COPYING if copying else 1) * kv

    def kv(self, contender: str, workload: Workload) -> int:
        """The least that the KV of a call takes at its end, with the copies that its way of storing needs."""
        own = workload.rows * (workload.own + workload.new) * self.token
        prefix = workload.prefix * self.token
        if contender.startswith("relay"):
            return own + prefix
        if contender == "continuous-batching":  # shares whole pages
            return self.least_pages(workload) * PAGE * self.token
        rows = own + workload.rows * prefix
        if contender == "static-cache":
            return rows
        appending = 2 * rows // self.shape.layers  # a layer's keys and values, old and new side by side
        return rows + appending + (2 * prefix if contender == "prefix-copied" else 0)

    def least_pages(self, workload: Workload) -> int:
        """Pages that continuous batching needs where all rows share what they can."""
        shared, rest = divmod(workload.prefix, PAGE)
        return shared + workload.rows * math.ceil((rest + workload.own + workload.new) / PAGE)

    @property
    def _head_size(self) -> int:
        return self.shape.hidden // self.shape.heads


def _mean_own(workload: Workload) -> int:
    """Own tokens of a row, its newest included, in the mean over the steps after the first token."""
    return workload.own + workload.new // 2
