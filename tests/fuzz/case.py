"""A case, and how it is drawn from one integer."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from . import options, rows, sizes
from .rows import Batch


@dataclass(frozen=True)
class Case:
    """What is generated with, first by stock and then by the patched model.

    Attributes:
        number: the integer that it is drawn from.
        model_type, size: the tiny model.
        relay: fields of RelayConfig.
        options: arguments of generate(), the same in all passes.
        start: what comes before the first pass: "warm" for its prefix, "file" for one that comes from a file, "by hand"
            for a RelayCache given to it, or "".
        processor: whether a logits processor of the caller's own looks at all ids.
        batch: inputs of the first pass, with nothing kept.
        turn: tokens of a next turn, behind what the first pass returned, or None.
        how: what that turn goes on from: the cache that was "returned", or was "copied" or made "dynamic"; or nothing:
            the whole text is given again, "retold".
        second: inputs of the second pass, with the first one's prefix kept.
        change: how a weight is changed between the passes, or None.
        inside: the code that is put into a layer of both models, by its name in `code.CODE`, or "".
        used: what is done with the returned cache before the turn, by its name in `caches.USES`, or "".
    """

    number: int
    model_type: str
    size: int
    relay: dict[str, Any]
    options: dict[str, Any]
    start: str
    processor: bool
    batch: Batch
    turn: Batch | None
    how: str
    second: Batch
    change: str | None
    inside: str
    used: str

    def reproducer(self, dtype: str) -> str:
        """The line that runs it again."""
        suffix = "" if dtype == "float64" else f" --dtype {dtype}"
        return f"python -m tests.fuzz --case {self.number} --types {self.model_type}{suffix}"


_PLAIN_MODES = ("greedy", "sampling", "return sequences", "beams", "beam sampling")
CHANGES = ("add_", "data.mul_", "optimizer")
INSIDE = ("forward", "class", "hook", "parametrized", "vouched")
USES = ("read", "edited", "assigned", "cropped", "saved")


def draw_model(number: int, types: Sequence[str]) -> tuple[str, int]:
    """The model type of a case, and the number of its size."""
    rng = random.Random(f"model {number}")
    size = rng.randrange(sizes.COUNT)
    return sizes.draw_type(rng, types), size


def draw(number: int, types: Sequence[str]) -> Case:
    """The case of a number. All but the type is the same whatever `types` are."""
    model_type, size = draw_model(number, types)
    rng = random.Random(f"case {number}")
    mode = options.draw_mode(rng)
    call = options.draw_options(rng, mode)
    style = rows.draw_style(rng, single=options.is_for_one_row(mode))
    batch = rows.draw_batch(rng, style, style.rows)
    turn = None
    if rng.random() < 0.16 and mode in ("greedy", "sampling") and batch.position_ids is None:
        turn = rows.draw_turn(rng, style.rows)
        call["return_dict_in_generate"] = True
    return Case(
        number=number,
        model_type=model_type,
        size=size,
        relay={"policy": _policy(number), "linears": _linears(number), **_relay(rng, len(style.prefix))},
        options=call,
        start=rng.choices(("", "warm", "file", "by hand" if mode in _PLAIN_MODES else ""), (90, 4, 2, 4))[0],
        processor=rng.random() < 0.08,
        batch=batch,
        turn=turn,
        how=rng.choices(("returned", "copied", "dynamic", "retold"), (40, 20, 10, 30))[0],
        second=_second(rng, style, batch, mode),
        change=rng.choice(CHANGES) if rng.random() < 0.06 else None,
        inside=_sometimes(f"inside {number}", 0.05, INSIDE),
        used=_sometimes(f"used {number}", 0.5, USES),
    )


def _policy(number: int) -> str:
    """Under "auto" a tiny model's call is seldom relayed: it shows what `explain` makes of the call's length."""
    return "auto" if random.Random(f"policy {number}").random() < 0.04 else "always"


def _linears(number: int) -> Literal[True, "auto"]:
    """Under "auto" the layers of a tiny model are too small for oneDNN."""
    return True if random.Random(f"linears {number}").random() < 0.6 else "auto"


def _sometimes(what: str, often: float, names: Sequence[str]) -> str:
    """One of the names, or "". It is drawn by itself, so that all else of a number's case stays what it was."""
    rng = random.Random(what)
    return rng.choice(names) if rng.random() < often else ""


def _relay(rng: random.Random, prefix: int) -> dict[str, Any]:
    most = min(20, prefix) if prefix and rng.random() < 0.93 else 20
    relay: dict[str, Any] = {"min_prefix_length": rng.randint(1, most)}
    if rng.random() < 0.08:
        relay["max_store_bytes"] = rng.choice((0, 20_000))
    return relay


def _second(rng: random.Random, style: rows.Style, batch: Batch, mode: str) -> Batch:
    """The same rows again, or the same start with other own tokens, or a shorter or longer start."""
    how = rng.choices(("same", "other own", "shorter", "longer"), (10, 60, 15, 15))[0]
    if how == "same":
        return batch
    prefix = style.prefix
    if how == "shorter" and prefix:
        prefix = prefix[: rng.randint(1, len(prefix))]
    if how == "longer":
        prefix = prefix + tuple(rows.draw_ids(rng, rng.randint(1, 25)))
    few = options.is_for_one_row(mode) or rng.random() < (0.7 if style.rows == 1 else 0.1)
    count = 1 if few else rng.randint(2, 6)
    return rows.draw_batch(rng, replace(style, prefix=prefix), count)
