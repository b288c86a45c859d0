"""The reports: what one generate() call did, what a call would do, and totals over many calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .reasons import Refusal, Source


@dataclass
class RelayReport:
    """What a generate() call did, or would do.

    Attributes:
        relayed: whether tokens that rows share were stored and read once for all of them.
        reason: why the call was relayed, or why it was left to stock, in words.
        reason_source: what caused the call to be left to stock: the "call" (what its caller asked for or gave), the
            "model" (its type, mode, hooks, adapters, quantization, device), or "transformers"; None if it was relayed.
        rows: rows that the model ran, after `num_return_sequences` and `num_beams` (rows).
        prefix_length: the longest start of a row that it shares with others (tokens).
        prefix_tokens_reused: tokens of the runs that earlier calls had kept (tokens).
        prompt_tokens_computed: prompt tokens that went through the model, padding excluded (tokens).
        prompt_tokens_saved: prompt tokens that stock generate() would have computed on top of these (tokens).
        kv_bytes: what the KV cache holds at the end of the call, shared tokens counted once (bytes).
        kv_bytes_reserved: room in the same cache for tokens to come, on top of `kv_bytes` (bytes).
        kv_bytes_stock: size of the cache that stock generate() would have had (bytes).
        levels: levels of sharing: the most shared runs that follow each other in a row.
        unkept_reason: why the shared runs are not kept for later calls, in words; empty if they may be.
        backend: what computed attention: "triton", "torch", "model" for code of the model's own, or "stock".
        graph_steps: decode steps that were replays of a CUDA graph.
        graph_bytes: memory of this call's graphs: own KV, which these fields count too, and working memory (bytes).
        graph_reason: why decode steps were not replays, in words; empty if they were.
    """

    relayed: bool
    reason: str
    reason_source: Source | None = None
    rows: int = 0
    prefix_length: int = 0
    prefix_tokens_reused: int = 0
    prompt_tokens_computed: int = 0
    prompt_tokens_saved: int = 0
    kv_bytes: int = 0
    kv_bytes_reserved: int = 0
    kv_bytes_stock: int = 0
    levels: int = 0
    unkept_reason: str = ""
    backend: str = "stock"
    graph_steps: int = 0
    graph_bytes: int = 0
    graph_reason: str = ""

    @classmethod
    def untouched(cls, refusal: Refusal, **facts: Any) -> RelayReport:
        """The report of a call that was left to stock; `facts` are other fields."""
        return cls(False, str(refusal), refusal.source, **facts)

    def __repr__(self) -> str:
        if not self.relayed:
            return f"RelayReport(untouched: {self.reason})"
        parts = [
            f"relayed: {self.reason}",
            self._shared,
            f"prompt tokens computed {self.prompt_tokens_computed}, saved {self.prompt_tokens_saved}",
        ]
        if self.kv_bytes:
            ratio = self.kv_bytes_stock / self.kv_bytes
            less = f" ({ratio:.1f}x less)" if ratio >= 1.05 else ""
            parts.append(f"KV {readable_bytes(self.kv_bytes)} for stock's {readable_bytes(self.kv_bytes_stock)}{less}")
        if self.unkept_reason:
            parts.append(f"nothing kept: {self.unkept_reason}")
        graph = f", {self.graph_steps} steps replayed" if self.graph_steps else ""
        return f"RelayReport({'; '.join(parts)}; backend {self.backend}{graph})"

    @property
    def _shared(self) -> str:
        kept = f"{self.prefix_tokens_reused} kept from before"
        if self.rows == 1:
            return f"one row, {kept}"
        if self.levels < 2:
            return f"{self.rows} rows share {self.prefix_length} tokens ({kept})"
        return f"{self.rows} rows share up to {self.prefix_length} tokens in {self.levels} levels ({kept})"


@dataclass(repr=False)
class Explanation(RelayReport):
    """The report of a call that was not run.

    Attributes:
        tree: the runs that its rows share, a line each, indented under the run before it; empty if there are none.
    """

    tree: str = ""

    def __repr__(self) -> str:
        return f"{super().__repr__()}\n{self.tree}".rstrip()


@dataclass
class RelayStats:
    """Totals since the model was patched: calls, tokens."""

    calls: int = 0
    relayed_calls: int = 0
    prefix_tokens_reused: int = 0
    prompt_tokens_computed: int = 0
    prompt_tokens_saved: int = 0

    def add(self, report: RelayReport) -> None:
        """Count one finished call."""
        self.calls += 1
        self.relayed_calls += report.relayed
        self.prefix_tokens_reused += report.prefix_tokens_reused
        self.prompt_tokens_computed += report.prompt_tokens_computed
        self.prompt_tokens_saved += report.prompt_tokens_saved


def readable_bytes(count: int) -> str:
    """A number of bytes as text, such as `230.1 MiB`."""
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.2f} GiB"
