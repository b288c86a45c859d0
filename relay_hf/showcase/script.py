"""What the example scripts share: their options, a clock, and a verdict."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any, TypeVar

from . import smollm2
from .model import RANDOM
from .random_model import SIZES

Result = TypeVar("Result")


def options(description: str | None) -> argparse.Namespace:
    """The command line of a script: `model` and `size`, as `load` takes them."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--model", default=smollm2.NAME, help="a Hub id, a local path, or random (default: %(default)s)"
    )
    parser.add_argument("--size", choices=SIZES, help="of --model random (default: small)")
    given = parser.parse_args()
    if given.size is not None and given.model != RANDOM:
        parser.error(f"argument --size: it is of --model {RANDOM}, and --model is {given.model}")
    return given


def timed(name: str, call: Callable[..., Result], *arguments: Any) -> Result:
    """What `call(*arguments)` returns; prints how long it took (seconds)."""
    start = time.perf_counter()
    result = call(*arguments)
    print(f"{name:<32}{time.perf_counter() - start:8.2f} s")
    return result


def verdict(model: Any, same: bool) -> int:
    """A script's exit status: 0 if the outputs are stock's and every call since the model was patched was relayed.

    Args:
        model: a patched model, or what wraps one.
        same: whether the outputs are those of stock generate().
    """
    stats = model.relay.stats()
    print(f"same outputs as stock: {'yes' if same else 'NO'}")
    print(f"calls relayed: {stats.relayed_calls} of {stats.calls}; the last: {model.relay.last!r}")
    return 0 if same and stats.relayed_calls == stats.calls else 1
