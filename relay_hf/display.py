"""How `model.relay` is printed: one line in a terminal, tables in a notebook."""

from __future__ import annotations

from typing import NamedTuple

from .prefix import KeptPrefix
from .report import RelayReport, RelayStats, html_table, readable_bytes

_MOST_PREFIXES = 10  # the table lists so many, the latest used first


class Shown(NamedTuple):
    """The facts about a handle that are shown.

    Attributes:
        model: the name of the model's class.
        policy: the policy in force.
        refused: why no call is relayed, whatever the call, in words; None if that is up to the call.
        prefixes: the kept prefixes, the least recently used first.
        budget: bytes that these may take.
        stats: totals over all calls.
        last: the report of the latest call, or None.
    """

    model: str
    policy: str
    refused: str | None
    prefixes: tuple[KeptPrefix, ...]
    budget: int
    stats: RelayStats
    last: RelayReport | None


def as_line(shown: Shown) -> str:
    """One line: model, policy, kept prefixes, totals, and the latest call."""
    parts = [f"{name} {words}" if name else words for name, words in _facts(shown)]
    return f"Relay({shown.model}, {'; '.join(parts)}; last: {shown.last!r})"


def as_html(shown: Shown) -> str:
    """The same as tables, with the kept prefixes one by one."""
    rows = [("model", shown.model), *_facts(shown), ("last call", repr(shown.last))]
    facts = html_table((name or "calls", words) for name, words in rows)
    kept = list(reversed(shown.prefixes))
    listed = "".join(map(_row, kept[:_MOST_PREFIXES]))
    more = f"<tr><td>and {len(kept) - _MOST_PREFIXES} more</td></tr>" if len(kept) > _MOST_PREFIXES else ""
    head = "<tr><th>kept prefix, tokens</th><th>its own tokens</th><th>size</th><th>pinned</th></tr>"
    table = f"<table>{head}{listed}{more}</table>" if kept else ""
    return f"{facts}{table}"


def _facts(shown: Shown) -> list[tuple[str, str]]:
    kept, stats = shown.prefixes, shown.stats
    size, budget = readable_bytes(sum(prefix.nbytes for prefix in kept)), readable_bytes(shown.budget)
    count = "1 prefix" if len(kept) == 1 else f"{len(kept)} prefixes"
    calls = "1 call" if stats.calls == 1 else f"{stats.calls} calls"
    refused = [] if shown.refused is None else [("relays no call:", shown.refused)]
    return [
        *refused,
        ("policy", shown.policy),
        ("kept", f"{count}, {size} of {budget}"),
        ("", f"{calls}, {stats.relayed_calls} relayed, {stats.prompt_tokens_saved:,} prompt tokens saved"),
    ]


def _row(prefix: KeptPrefix) -> str:
    cells = (
        f"{len(prefix):,}",
        f"{prefix.run.length:,}",
        readable_bytes(prefix.nbytes),
        "yes" if prefix.pinned else "",
    )
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
