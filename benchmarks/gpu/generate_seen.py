"""What calls of one check did, held against stock's tokens and against what is promised of them."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from .context import Context
from .generate_calls import Stock
from .store import Record

TIE = 1e-3  # by which stock's token leads at most, where rounding may have it that another one does
_SAID = ("relayed", "reason", "backend", "prefix_tokens_reused", "graph_steps", "graph_reason")


class Seen:
    """The calls of one check.

    Attributes:
        graphs: whether there are graphs here, which there are not in a dry run.
    """

    def __init__(self, context: Context) -> None:
        self.graphs = not context.dry_run
        self._calls: list[Record] = []
        self._wrong: list[str] = []

    def compare(
        self,
        what: str,
        model: PreTrainedModel,
        ours: Tensor,
        stock: Stock | None,
        replayed: bool | None = True,
        relayed: bool | None = True,
    ) -> Any:
        """Note the latest call of a patched model.

        Args:
            what: the call, in words.
            model: the model, patched.
            ours: its tokens `[B, L]`.
            stock: what they must be; None: anything.
            replayed: whether decode steps must be replays, or must not, and say why; None: either.
            relayed: whether the call must be relayed; None: either.

        Returns:
            The call's report.
        """
        report = model.relay.last
        differ, ties = (0, 0) if stock is None else rows_apart(ours, stock)
        call = {"what": what, "rows": len(ours), "rows_that_differ": differ, "ties": ties}
        self._calls.append(call | {name: getattr(report, name) for name in _SAID})
        self.expect(f"{what}: {differ} of {len(ours)} rows are not stock's", differ == ties)
        self.expect(f"{what}: not relayed: {report.reason}", report.relayed or relayed is None)
        if not report.relayed or replayed is None:
            return report
        if replayed and self.graphs:
            self.expect(f"{what}: no step was replayed: {report.graph_reason}", report.graph_steps > 0)
        else:
            self.expect(f"{what}: {report.graph_steps} steps were replayed", report.graph_steps == 0)
            self.expect(f"{what}: no step was replayed, and nothing says why", bool(report.graph_reason))
        return report

    def expect(self, otherwise: str, holds: bool) -> None:
        """Note what is wrong, if it is."""
        if not holds:
            self._wrong.append(otherwise)

    def expect_graphs(self, what: str, model: PreTrainedModel, count: int) -> None:
        """Note if the model keeps more graphs, or fewer, where there are any."""
        kept = len(model.relay._hooks.graphs)
        self.expect(f"{what}: {kept} graphs are kept, not {count}", kept == (count if self.graphs else 0))

    def record(self) -> Record:
        """Whether all was as it should be, what was not, and the calls."""
        return {"passed": not self._wrong, "wrong": self._wrong, "calls": self._calls}


def rows_apart(ours: Tensor, stock: Stock) -> tuple[int, int]:
    """Rows that differ from stock's; and those of them that do so first where stock's two best tokens all but tie."""
    if ours.shape != stock.tokens.shape:
        return len(ours), 0
    differs = ours != stock.tokens
    rows = differs.any(dim=1)
    if stock.gaps is None:
        return int(rows.sum()), 0
    first = differs.int().argmax(dim=1) - (ours.shape[1] - stock.gaps.shape[1])
    lead = stock.gaps.gather(1, first.clamp(min=0).unsqueeze(1)).squeeze(1)
    return int(rows.sum()), int((rows & (first >= 0) & (lead < TIE)).sum())
