"""Making a case smaller while it still differs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from .case import Case
from .rows import Batch
from .run import Outcome, run_case

_PLAIN: dict[str, Any] = {
    "turn": None,
    "change": None,
    "processor": False,
    "start": "",
    "size": 0,
    "how": "returned",
    "inside": "",
    "used": "",
}
_BATCHES = ("batch", "second", "turn")


def shrink(outcome: Outcome, dtype: str, on_step: Callable[[Outcome], None] = lambda _: None) -> Outcome:
    """The outcome of the smallest case that is found: no single step makes it smaller and leaves the mismatch."""
    smaller: Outcome | None = outcome
    while smaller is not None:
        outcome = smaller
        on_step(outcome)
        tried = (run_case(case, dtype) for case in _smaller(outcome.case))
        smaller = next((each for each in tried if each.kind == "mismatch"), None)
    return outcome


def _smaller(case: Case) -> Iterator[Case]:
    """Cases with one thing less, the large steps first."""
    if case.second != case.batch:
        yield replace(case, second=case.batch)
        yield replace(case, batch=case.second, turn=None)
    for name, plain in _PLAIN.items():
        if getattr(case, name) != plain:
            yield replace(case, **{name: plain})
    for name in case.options:
        if name != "max_new_tokens":
            yield replace(case, options={key: value for key, value in case.options.items() if key != name})
    for name in case.relay:
        yield replace(case, relay={key: value for key, value in case.relay.items() if key != name})
    for name in _BATCHES:
        batch = getattr(case, name)
        if batch is not None:
            others = [other for other in _BATCHES if other != name and getattr(case, other) == batch]
            for fewer in _smaller_batches(batch, rows=name != "turn" and case.turn is None):
                changes: dict[str, Any] = dict.fromkeys([name, *others], fewer)
                yield replace(case, **changes)
    new = case.options["max_new_tokens"]
    for fewer_tokens in dict.fromkeys((1, new // 2, new - 1)):
        if 0 < fewer_tokens < new:
            least = {"min_new_tokens": fewer_tokens} if "min_new_tokens" in case.options else {}
            yield replace(case, options={**case.options, "max_new_tokens": fewer_tokens, **least})


def _smaller_batches(batch: Batch, rows: bool) -> Iterator[Batch]:
    """Without a row; without the first columns, or the last one; without positions."""
    if rows and len(batch.input_ids) > 1:
        for row in range(len(batch.input_ids)):
            yield _select(batch, lambda each, row=row: each[:row] + each[row + 1 :])  # type: ignore[misc]
    width = len(batch.input_ids[0])
    for count in dict.fromkeys((width // 2, width // 4, 1)):
        if 0 < count < width:
            yield _select(batch, lambda each, count=count: [line[count:] for line in each])  # type: ignore[misc]
    if width > 1:
        yield _select(batch, lambda each: [line[:-1] for line in each])
    if batch.position_ids is not None:
        yield replace(batch, position_ids=None)


def _select(batch: Batch, change: Callable[[list[list[int]]], list[list[int]]]) -> Batch:
    mask, positions = batch.attention_mask, batch.position_ids
    return replace(
        batch,
        input_ids=change(batch.input_ids),
        attention_mask=None if mask is None else change(mask),
        position_ids=None if positions is None else change(positions),
    )
