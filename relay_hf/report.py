"""The reports: what one generate() call did, what a call would do, and totals over many calls."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from html import escape
from typing import Any

from .reasons import ReasonText, Refusal, Source


@dataclass
class RelayReport:
    """What a generate() call did, or would do. `print(report)` says it in a few lines, `repr(report)` in one.

    A count is None where it is not known: of KV that stock holds, or of prompts that a call never came to.

    Attributes:
        relayed: whether tokens that rows share were stored and read once for all of them.
        reason: why the call was relayed, or why it was left to stock, in words.
        reason_code: the same as a code for programs, such as "short_prefix"; the table of codes lists all.
        reason_source: what caused the call to be left to stock: the "call" (what its caller asked for or gave), the
            "model" (its type, mode, hooks, adapters, quantization, device), or "transformers"; None if it was relayed.
        rows: rows that the model ran, after `num_return_sequences` and `num_beams` (rows).
        prefix_length: the longest start of a row that it shares with others, whether it was shared or not (tokens).
        prefix_tokens_reused: tokens of the runs that earlier calls had kept (tokens).
        prompt_tokens_computed: prompt tokens that went through the model, padding excluded (tokens).
        prompt_tokens_saved: prompt tokens that stock generate() would have computed on top of these (tokens).
        kv_bytes: what the KV cache holds at the end of the call, shared tokens counted once (bytes).
        kv_bytes_reserved: room in the same cache for tokens to come, on top of `kv_bytes` (bytes).
        kv_bytes_stock: size of the cache that stock generate() would have had (bytes).
        levels: levels of sharing: the most shared runs that follow each other in a row (runs). Of a call that was left
            to stock, of the runs that are long enough to be shared.
        unkept_reason: why the shared runs are not kept for later calls, in words; empty if they may be.
        unkept_code: the same as a code; None if they may be.
        backend: what computed attention: "triton", "torch", "model" for code of the model's own, or "stock".
        linears: what computed linear layers: "onednn" for those that are plain, or "pytorch" for all.
        linears_reason: why it was not oneDNN, in words; empty if it was.
        graph_steps: decode steps that were replays of a CUDA graph (steps).
        graph_bytes: memory of this call's graphs: own KV, which these fields count too, and working memory (bytes).
        graph_reason: why decode steps were not replays, in words; empty if they were.
        compiled_steps: decode steps that ran compiled (steps).
        compile_seconds: time of this call that went into compiling them (seconds).
        compile_bytes: reordered copies of the model's weights that compiled steps read (bytes).
        compile_reason: why decode steps were not compiled, in words; empty if they were, or if `compile=False`.
        expected_saving_seconds: time that policy "auto" expected relaying to save, at least; negative where relaying
            would have cost more (seconds). None if it was not asked, or does not know.
    """

    relayed: bool
    reason: str
    reason_source: Source | None = None
    rows: int | None = None
    prefix_length: int | None = None
    prefix_tokens_reused: int = 0
    prompt_tokens_computed: int | None = None
    prompt_tokens_saved: int = 0
    kv_bytes: int | None = None
    kv_bytes_reserved: int | None = None
    kv_bytes_stock: int | None = None
    levels: int | None = None
    unkept_reason: str = ""
    backend: str = "stock"
    graph_steps: int | None = None
    graph_bytes: int | None = None
    graph_reason: str = ""
    compiled_steps: int | None = None
    compile_seconds: float | None = None
    compile_bytes: int | None = None
    compile_reason: str = ""
    reason_code: str = ""
    unkept_code: str | None = None
    expected_saving_seconds: float | None = None
    linears: str = "pytorch"
    linears_reason: str = ""

    @classmethod
    def of(cls, reason: ReasonText, **facts: Any) -> RelayReport:
        """The report of a call that was left to stock, if the reason is a refusal, or relayed; `facts`: more fields."""
        relayed = not isinstance(reason, Refusal)
        return cls(relayed, str(reason), reason.source, reason_code=reason.code, **facts)

    def refuse(self, refusal: Refusal) -> RelayReport:
        """The report of the same call, once it is left to stock after all."""
        computed = self.prompt_tokens_computed
        return RelayReport.of(
            refusal,
            rows=self.rows,
            prefix_length=self.prefix_length,
            prompt_tokens_computed=None if computed is None else computed + self.prompt_tokens_saved,
            levels=self.levels,
            expected_saving_seconds=self.expected_saving_seconds,
        )

    def __repr__(self) -> str:
        name = type(self).__name__
        if not self.relayed:
            return f"{name}({self._status}: {self.reason})"
        parts = [
            f"{self._status}: {self.reason}",
            self._shared,
            f"prompt tokens computed {self.prompt_tokens_computed}, saved {self.prompt_tokens_saved}",
        ]
        if self._kv:
            parts.append(f"KV {self._kv}")
        if self.unkept_reason:
            parts.append(f"nothing kept: {self.unkept_reason}")
        return f"{name}({'; '.join(parts)}; backend {self.backend}{self._steps})"

    def __str__(self) -> str:
        # Of a relayed call the expectation, which depends on the machine, is for those who look for it.
        facts = self._facts() + ([] if self.relayed else self._expected)
        return "\n  ".join(f"{label}: {words}" for label, words in facts)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return html_table(self._facts() + self._expected)

    def _facts(self) -> list[tuple[str, str]]:
        """What is known, each with a label."""
        facts = [(self._status, self.reason)]
        if self.reason_code:
            whose = f", because of {_WHOSE[self.reason_source]}" if self.reason_source else ""
            facts.append(("reason code", self.reason_code + whose))
        if self.relayed:
            facts.append(("shared", self._shared))
        elif self.rows is not None:
            alike = f", which start with up to {self.prefix_length} tokens alike" if self.prefix_length else ""
            facts.append(("rows", f"{self.rows}{alike}"))
        if self.prompt_tokens_computed is not None:
            facts.append(("prompt tokens", f"{self.prompt_tokens_computed} computed, {self.prompt_tokens_saved} saved"))
        if self._kv:
            facts.append(("KV", self._kv))
        if self.unkept_reason:
            facts.append(("nothing kept", self.unkept_reason))
        if self.relayed:
            facts.append(("backend", self.backend + self._steps))
        return facts

    @property
    def _status(self) -> str:
        return "relayed" if self.relayed else "left to stock"

    @property
    def _steps(self) -> str:
        """How the decode steps ran, if not by the model's own code."""
        replayed = f", {self.graph_steps} steps replayed" if self.graph_steps else ""
        return replayed + (f", {self.compiled_steps} steps compiled" if self.compiled_steps else "")

    @property
    def _expected(self) -> list[tuple[str, str]]:
        seconds = self.expected_saving_seconds
        return [] if seconds is None else [("expected saving", f"{seconds:.2g} s")]

    @property
    def _shared(self) -> str:
        kept = f"{self.prefix_tokens_reused} kept from before"
        if self.rows == 1:
            return f"one row, {kept}"
        if (self.levels or 0) < 2:
            return f"{self.rows} rows share {self.prefix_length} tokens ({kept})"
        return f"{self.rows} rows share up to {self.prefix_length} tokens in {self.levels} levels ({kept})"

    @property
    def _kv(self) -> str:
        """The size of the cache beside stock's; empty if it is not known."""
        if not self.kv_bytes or self.kv_bytes_stock is None:
            return ""
        ratio = self.kv_bytes_stock / self.kv_bytes
        less = f" ({ratio:.1f}x less)" if ratio >= 1.05 else ""
        return f"{readable_bytes(self.kv_bytes)} for stock's {readable_bytes(self.kv_bytes_stock)}{less}"


_WHOSE = {"call": "the call", "model": "the model", "transformers": "Transformers"}


@dataclass(repr=False)
class Explanation(RelayReport):
    """The report of a call that was not run. Its bytes and graphs are not foretold, and None.

    Attributes:
        tree: the runs that its rows share, a line each, indented under the run before it; empty if there are none.
    """

    tree: str = ""

    @property
    def _status(self) -> str:
        return f"would be {super()._status}"

    def __str__(self) -> str:
        return f"{super().__str__()}\n{self.tree}".rstrip()

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        tree = f"<pre>{escape(self.tree)}</pre>" if self.tree else ""
        return super()._repr_html_() + tree


@dataclass
class RelayStats:
    """Totals since the model was patched. What a report does not know counts as 0.

    Attributes:
        calls: calls of generate() that have ended, errors included (calls).
        relayed_calls: those that were relayed (calls).
        prefix_tokens_reused: tokens of the runs that earlier calls had kept (tokens).
        prompt_tokens_computed: prompt tokens that went through the model, padding excluded (tokens).
        prompt_tokens_saved: prompt tokens that stock generate() would have computed on top of these (tokens).
        calls_by_code: for each reason code that a call has had, the number of such calls (calls).
    """

    calls: int = 0
    relayed_calls: int = 0
    prefix_tokens_reused: int = 0
    prompt_tokens_computed: int = 0
    prompt_tokens_saved: int = 0
    calls_by_code: dict[str, int] = field(default_factory=dict)

    def add(self, report: RelayReport) -> None:
        """Count one finished call."""
        self.calls += 1
        self.relayed_calls += report.relayed
        self.prefix_tokens_reused += report.prefix_tokens_reused
        self.prompt_tokens_computed += report.prompt_tokens_computed or 0
        self.prompt_tokens_saved += report.prompt_tokens_saved
        self.calls_by_code[report.reason_code] = self.calls_by_code.get(report.reason_code, 0) + 1

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({"calls_by_code": {}} | state)  # earlier versions of 0.1.0 did not count codes


def html_table(rows: Iterable[tuple[str, str]]) -> str:
    """A table of labels and words for a notebook; both are escaped."""
    cells = (f"<tr><th>{escape(label)}</th><td>{escape(words)}</td></tr>" for label, words in rows)
    return f"<table>{''.join(cells)}</table>"


def readable_bytes(count: int) -> str:
    """A number of bytes as text, such as `230.1 MiB`."""
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.2f} GiB"
