"""What is compared: each contender prepares itself untimed and returns the call that is timed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import ContinuousBatchingConfig, DynamicCache, GenerationConfig, PreTrainedModel

import relay_hf
from relay_hf.model.upstream.names import CACHE

from .workloads import Workload

TimedCall = Callable[[], Tensor]


def patched_twin(model: PreTrainedModel, **options: Any) -> PreTrainedModel:
    """A patched model that shares the weights of a stock one, which stays as it is."""
    shared_weights = {id(parameter): parameter for parameter in model.parameters()}
    return relay_hf.patch_model(copy.deepcopy(model, shared_weights), **options)


class Bench:
    """A workload with its stock model, and a patched twin that shares the weights."""

    def __init__(self, workload: Workload, policy: str, model: PreTrainedModel | None = None) -> None:
        self.workload = workload
        self.policy = policy
        self.model = model or workload.model.build()
        self.twin = patched_twin(self.model, policy=policy)
        self.draw(0)

    @cached_property
    def first_level_twin(self) -> PreTrainedModel:
        """Another twin: all that rows share behind the first level is too short for it to be a prefix."""
        return patched_twin(self.model, policy=self.policy, min_prefix_length=self.workload.prefix)

    def draw(self, draw: int) -> None:
        """Take other own tokens."""
        self.prompts = self.workload.prompts(draw).to(self.model.device)

    def generate(self, model: PreTrainedModel, prompts: Tensor, **options: Any) -> Tensor:
        """The new tokens `[rows, new]` of a generate() whose token count is forced."""
        torch.manual_seed(0)
        count = {"min_new_tokens": self.workload.new, "max_new_tokens": self.workload.new}
        output = model.generate(prompts, **count, **{"do_sample": False, **self.workload.options, **options})
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)  # the call is over when the device is done
        return output[:, prompts.shape[1] :]

    def prefill_level(self, level: int) -> DynamicCache:
        """The KV of the shared tokens of a level, a row for each group, as if no level were before it."""
        groups, before = self.workload.levels[level][1], sum(tokens for tokens, _ in self.workload.levels[:level])
        ids = self.prompts[:: self.workload.rows // groups, before : before + self.workload.levels[level][0]]
        cache = DynamicCache(config=self.model.config)
        with torch.no_grad():
            self.model(ids, **{CACHE: cache}, logits_to_keep=1)
        return cache


def stock(bench: Bench) -> TimedCall:
    """generate() as it comes, with a DynamicCache."""
    return lambda: bench.generate(bench.model, bench.prompts)


def static_cache(bench: Bench) -> TimedCall:
    """generate() with a preallocated cache."""
    return lambda: bench.generate(bench.model, bench.prompts, cache_implementation="static")


def continuous_batching(bench: Bench) -> TimedCall:
    """generate_batch(), which keeps a shared prefix once and reads it once a row.

    Its cache is sized for the workload and its batches for one prompt: left to itself it fills the memory first, and a
    mask over larger batches costs more than it saves.
    """
    block, (rows, width) = 256, bench.prompts.shape  # tokens of a block, as Transformers has it
    blocks = rows * (1 + (width + bench.workload.new) // block)
    room = ContinuousBatchingConfig(num_blocks=blocks, max_batch_tokens=max(block, width))
    config = GenerationConfig(max_new_tokens=bench.workload.new, do_sample=False, eos_token_id=-1, pad_token_id=0)

    def call() -> Tensor:
        answers = bench.model.generate_batch(
            bench.prompts.tolist(), generation_config=config, continuous_batching_config=room
        )
        return torch.tensor([answer.generated_tokens for answer in answers.values()], device=bench.prompts.device)

    return call


def prefix_copied(bench: Bench) -> TimedCall:
    """Transformers' own prefix idiom: prefill the first level once, copy the cache, repeat it for every row."""
    workload = bench.workload

    def call() -> Tensor:
        cache = copy.deepcopy(bench.prefill_level(0))
        cache.batch_repeat_interleave(workload.rows * workload.answers // workload.levels[0][1])
        return bench.generate(bench.model, bench.prompts, **{CACHE: cache})

    return call


def no_prefix(bench: Bench) -> TimedCall:
    """Stock generate() on the own tokens alone: other tokens, less work."""
    return lambda: bench.generate(bench.model, bench.prompts[:, bench.workload.shared :])


def floor(bench: Bench) -> TimedCall:
    """What no sharing scheme goes under: each shared token prefilled once, and stock generate() on the own ones."""

    def call() -> Tensor:
        for level in range(len(bench.workload.levels)):
            bench.prefill_level(level)
        return bench.generate(bench.model, bench.prompts[:, bench.workload.shared :])

    return call


def relay_cold(bench: Bench) -> TimedCall:
    """The patched model, with nothing kept."""
    bench.twin.relay.clear()
    return lambda: bench.generate(bench.twin, bench.prompts)


def one_level(bench: Bench) -> TimedCall:
    """The patched model, with nothing kept, sharing only what all rows do."""
    bench.first_level_twin.relay.clear()
    return lambda: bench.generate(bench.first_level_twin, bench.prompts)


def relay_kept(bench: Bench) -> TimedCall:
    """The patched model that has seen the prefix before, with other own tokens, and nothing else."""
    prompts = bench.prompts
    bench.twin.relay.clear()  # another contender of the round may have shown it this very prompt
    bench.draw(-1)
    bench.generate(bench.twin, bench.prompts)
    bench.prompts = prompts
    return lambda: bench.generate(bench.twin, bench.prompts)


def _any(workload: Workload) -> bool:
    return True


def _is_shared(workload: Workload) -> bool:
    """Rows share something."""
    return bool(workload.levels)


def _is_plain(workload: Workload) -> bool:
    """Greedy, and an answer for each row."""
    return not workload.options


def _is_a_tree(workload: Workload) -> bool:
    """What all rows share is longer than what some of them can share behind it."""
    return bool(workload.later) and workload.prefix > workload.shared - workload.prefix + workload.own


@dataclass(frozen=True)
class Contender:
    """A row of the table.

    Attributes:
        prepare: does what is not timed, and returns the call that is.
        tokens: what its tokens have to do with stock's: they must be the same, they are compared and shown, or they
            answer other prompts.
        twin: the patched model that it runs, if any.
        fits: whether it says anything of a workload.
    """

    prepare: Callable[[Bench], TimedCall]
    tokens: Literal["exact", "compared", "other"]
    twin: Callable[[Bench], PreTrainedModel] | None = None
    fits: Callable[[Workload], bool] = _any

    @property
    def relays(self) -> bool:
        """Whether it runs a patched model."""
        return self.twin is not None


CONTENDERS = {
    "stock": Contender(stock, "exact"),
    "static-cache": Contender(static_cache, "compared"),
    "continuous-batching": Contender(continuous_batching, "compared", fits=_is_plain),
    "prefix-copied": Contender(prefix_copied, "exact", fits=_is_shared),
    "no-prefix": Contender(no_prefix, "other", fits=_is_shared),
    "floor": Contender(floor, "other", fits=_is_shared),
    "one-level": Contender(one_level, "exact", lambda bench: bench.first_level_twin, _is_a_tree),
    "relay-cold": Contender(relay_cold, "exact", lambda bench: bench.twin),
    "relay-kept": Contender(relay_kept, "exact", lambda bench: bench.twin),
}
