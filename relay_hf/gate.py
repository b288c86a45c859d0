"""`policy="auto"`: whether relaying a call is expected to be faster than stock."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """What the gate looks at: rows, and tokens.

    Attributes:
        rows: rows of the call.
        prefix: tokens that would be shared.
        reused: how many of them are kept from before.
        own: columns of own prompt tokens.
        new: tokens to be generated for a row, at most.
        returning: a single row whose start has been seen before: later calls are expected to save it.
    """

    rows: int
    prefix: int
    reused: int
    own: int
    new: int
    returning: bool = False


def refusal(shape: Shape, device_type: str) -> str | None:
    """Why relaying is not expected to pay, or None."""
    saved = shape.rows * shape.prefix - (shape.prefix - shape.reused)
    if shape.returning and not shape.reused:
        saved = shape.prefix
    if saved < 64:
        return f"policy 'auto': relaying would save only {max(saved, 0)} prompt tokens"
    return None
