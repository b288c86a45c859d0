"""A model's handle as a person sees it: one line in a terminal, a table in a notebook."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from .report import readable_bytes

if TYPE_CHECKING:
    from .prefix import KeptPrefix
    from .relay import Relay

_MOST_PREFIXES = 10  # that the table lists, the latest used first


def as_line(relay: Relay) -> str:
    """Model, policy, what is kept, what was done, and the latest call."""
    parts = [f"{name} {words}" if name else words for name, words in _facts(relay)]
    return f"Relay({type(relay.model).__name__}, {'; '.join(parts)}; last: {relay.last!r})"


def as_html(relay: Relay) -> str:
    """The same as tables, with the kept prefixes one by one."""
    rows = [("model", type(relay.model).__name__), *_facts(relay), ("last call", repr(relay.last))]
    facts = "".join(f"<tr><th>{escape(name or 'calls')}</th><td>{escape(words)}</td></tr>" for name, words in rows)
    kept = list(reversed(relay.prefixes))
    shown = "".join(map(_row, kept[:_MOST_PREFIXES]))
    more = f"<tr><td>and {len(kept) - _MOST_PREFIXES} more</td></tr>" if len(kept) > _MOST_PREFIXES else ""
    head = "<tr><th>kept prefix, tokens</th><th>its own tokens</th><th>size</th><th>pinned</th></tr>"
    table = f"<table>{head}{shown}{more}</table>" if kept else ""
    return f"<table>{facts}</table>{table}"


def _facts(relay: Relay) -> list[tuple[str, str]]:
    kept, stats = relay.prefixes, relay.stats()
    size, budget = readable_bytes(sum(prefix.nbytes for prefix in kept)), readable_bytes(relay.keeper.budget)
    count = "1 prefix" if len(kept) == 1 else f"{len(kept)} prefixes"
    calls = "1 call" if stats.calls == 1 else f"{stats.calls} calls"
    return [
        ("policy", relay.config.policy),
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
