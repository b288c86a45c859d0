"""The tree of the runs that rows share, drawn for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.tree import Tree

from relay_hf.report import readable_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from relay_hf.prefix import PrefixNode

    from .estimate import Estimate

_SHOWN = 8  # runs under one that are shown; the JSON has all
_DEEPEST = 8  # levels that are shown
_ENDS = 36  # characters that are shown of each end of a run's text


def tree_of(estimate: Estimate, tokenizer: PreTrainedTokenizerBase) -> Tree:
    """A node for each run, indented under the run before it, and a leaf for the rows that go on alone."""
    tree = Tree(f"[bold]{_rows(estimate.rows)}[/], {estimate.stock_tokens:,} prompt tokens")
    todo = [(tree, estimate.shared.runs, list(range(estimate.rows)), 0, 0)]
    prompts = estimate.shared.prompts
    lengths = (prompts.end - prompts.start).tolist()
    while todo:
        branch, runs, rows, start, depth = todo.pop()
        if runs and depth == _DEEPEST:
            branch.add("and what follows; --json has all")
            continue
        runs = sorted(runs, key=lambda run: -len(run.ids) * len(run.rows))
        for run in runs[:_SHOWN]:
            node = branch.add(f"{_size(run, estimate)}\n[dim]{escape(preview(run, tokenizer))}[/]")
            todo.append((node, run.children, list(run.rows), run.end, depth + 1))
        if runs[_SHOWN:]:
            branch.add(f"and {len(runs) - _SHOWN} smaller ones")
        alone = set(rows).difference(*(run.rows for run in runs))
        if alone:
            own = sorted(lengths[row] - start for row in alone)
            span = f"{own[0]:,}" if own[0] == own[-1] else f"{own[0]:,} to {own[-1]:,}"
            branch.add(f"{_rows(len(alone))} of {span} own tokens" + (" each" if len(alone) > 1 else ""))
    return tree


def _size(run: PrefixNode, estimate: Estimate) -> str:
    count = len(run.ids)
    text = f"[bold]{count:,} {'token' if count == 1 else 'tokens'}[/] shared by {_rows(len(run.rows))}"
    if estimate.token_bytes:
        once = count * estimate.token_bytes
        text += f": KV {readable_bytes(once)} for stock's {readable_bytes(once * len(run.rows))}"
    return text


def preview(run: PrefixNode, tokenizer: PreTrainedTokenizerBase) -> str:
    """The two ends of a run's text, on one line."""
    text = " ".join(tokenizer.decode(run.ids).split())
    return f'"{text}"' if len(text) <= 2 * _ENDS + 5 else f'"{text[:_ENDS].rstrip()} ... {text[-_ENDS:].lstrip()}"'


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"
