"""The contenders that are compared: each one prepares its call untimed, and returns the call to be timed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from .bench import Bench
from .workload import FileWorkload, Workload

TimedCall = Callable[[], Tensor]


class CannotRun(Exception):
    """A contender can't run the model; the message says why."""


def stock(bench: Bench) -> TimedCall:
    """Transformers' own generate(), with a DynamicCache."""
    return lambda: bench.generate(bench.model, bench.prompts)


def static_cache(bench: Bench) -> TimedCall:
    """generate() with a preallocated cache."""
    return lambda: bench.generate(bench.model, bench.prompts, cache_implementation="static")


def prefix_copied(bench: Bench) -> TimedCall:
    """Transformers' own prefix idiom: prefill the first level once, copy the cache, repeat it for every row."""
    layers = DynamicCache(config=bench.model.config).layers
    if not all(hasattr(layer, "batch_repeat_interleave") for layer in layers):
        raise CannotRun(
            "prefix-copied can't run a model whose cache holds states: Transformers can't copy them to several rows"
        )

    def call() -> Tensor:
        cache = copy.deepcopy(bench.prefill(bench.prefix))
        cache.batch_repeat_interleave(bench.rows // len(bench.prefix))
        return bench.generate_behind(cache)

    return call


def relay_cold(bench: Bench) -> TimedCall:
    """The patched model, with nothing kept."""
    bench.twin.relay.clear()
    return lambda: bench.generate(bench.twin, bench.prompts)


def relay_kept(bench: Bench) -> TimedCall:
    """The patched model after one call with the same prefix and other own tokens; of a file's, with the same prompts.

    That call keeps what several rows share, and nothing that one has alone, so its own tokens are computed anew.
    """
    prompts = bench.prompts
    bench.twin.relay.clear()  # another contender of the round may have shown it this very prompt
    bench.draw(-1)
    bench.generate(bench.twin, bench.prompts)
    bench.prompts = prompts
    return lambda: bench.generate(bench.twin, bench.prompts)


def any_workload(workload: Workload) -> bool:
    """All workloads."""
    return True


def shares(workload: Workload) -> bool:
    """Workloads whose rows share something."""
    return workload.shared > 0


def ends_its_prefix(workload: Workload) -> bool:
    """Workloads of which it is known what later prompts share; of a file's only prompt a call would keep all tokens."""
    return not isinstance(workload, FileWorkload) or workload.rows > 1


@dataclass(frozen=True)
class Contender:
    """A row of the table.

    Attributes:
        prepare: does the untimed part, and returns the call to be timed.
        tokens: how its tokens relate to stock's: they must be the same, they are compared and shown, or they answer
            other prompts.
        twin: the patched model that it runs, if any.
        fits: whether it makes sense for a workload.
    """

    prepare: Callable[[Any], TimedCall]  # of a Bench, or of the kind of it that a contender needs
    tokens: Literal["exact", "compared", "other"]
    twin: Callable[[Any], PreTrainedModel] | None = None
    fits: Callable[[Any], bool] = any_workload

    @property
    def relays(self) -> bool:
        """Whether it runs a patched model."""
        return self.twin is not None


CONTENDERS = {
    "stock": Contender(stock, "exact"),
    "static-cache": Contender(static_cache, "compared"),
    "prefix-copied": Contender(prefix_copied, "exact", fits=shares),
    "relay-cold": Contender(relay_cold, "exact", lambda bench: bench.twin),
    "relay-kept": Contender(relay_kept, "exact", lambda bench: bench.twin, ends_its_prefix),
}
