"""What is compared: each contender prepares itself untimed and returns the call that is timed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import ContinuousBatchingConfig, DynamicCache, GenerationConfig, PreTrainedModel

import relay_hf

from .workloads import Workload

Call = Callable[[], Tensor]


class Bench:
    """A workload with its stock model, and a patched twin that shares the weights."""

    def __init__(self, workload: Workload, policy: str, model: PreTrainedModel | None = None) -> None:
        self.workload = workload
        self.model = model or workload.model.build()
        shared_weights = {id(parameter): parameter for parameter in self.model.parameters()}
        self.twin = relay_hf.patch_model(copy.deepcopy(self.model, shared_weights), policy=policy)
        self.draw(0)

    def draw(self, draw: int) -> None:
        """Take other own tokens."""
        self.prompts = self.workload.prompts(draw)

    def generate(self, model: PreTrainedModel, prompts: Tensor, **options: Any) -> Tensor:
        """The new tokens `[rows, new]` of a generate() whose token count is forced."""
        torch.manual_seed(0)
        count = {"min_new_tokens": self.workload.new, "max_new_tokens": self.workload.new}
        output = model.generate(prompts, **count, **{"do_sample": False, **self.workload.options, **options})
        return output[:, prompts.shape[1] :]

    def prefill_prefix(self) -> DynamicCache:
        """The KV of the shared tokens, of one row."""
        cache = DynamicCache(config=self.model.config)
        with torch.no_grad():
            self.model(self.prompts[:1, : self.workload.prefix], past_key_values=cache, logits_to_keep=1)
        return cache


def stock(bench: Bench) -> Call:
    """generate() as it comes, with a DynamicCache."""
    return lambda: bench.generate(bench.model, bench.prompts)


def static_cache(bench: Bench) -> Call:
    """generate() with a preallocated cache."""
    return lambda: bench.generate(bench.model, bench.prompts, cache_implementation="static")


def continuous_batching(bench: Bench) -> Call:
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
        return torch.tensor([answer.generated_tokens for answer in answers.values()])

    return call


def prefix_copied(bench: Bench) -> Call:
    """Transformers' own prefix idiom: prefill once, copy the cache, repeat it for every row."""

    def call() -> Tensor:
        cache = copy.deepcopy(bench.prefill_prefix())
        cache.batch_repeat_interleave(bench.workload.rows)
        return bench.generate(bench.model, bench.prompts, past_key_values=cache)

    return call


def no_prefix(bench: Bench) -> Call:
    """Stock generate() on the own tokens alone: other tokens, less work."""
    return lambda: bench.generate(bench.model, bench.prompts[:, bench.workload.prefix :])


def floor(bench: Bench) -> Call:
    """What no sharing scheme goes under: each shared token prefilled once, and stock generate() on the own ones."""

    def call() -> Tensor:
        bench.prefill_prefix()
        return bench.generate(bench.model, bench.prompts[:, bench.workload.prefix :])

    return call


def relay_cold(bench: Bench) -> Call:
    """The patched model, with nothing kept."""
    bench.twin.relay.clear()
    return lambda: bench.generate(bench.twin, bench.prompts)


def relay_kept(bench: Bench) -> Call:
    """The patched model that has seen the prefix before, with other own tokens, and nothing else."""
    prompts = bench.prompts
    bench.twin.relay.clear()  # another contender of the round may have shown it this very prompt
    # The first call of a single row is remembered, the second one keeps what returned, the third one uses it.
    for draw in range(-3 if bench.workload.rows == 1 else -1, 0):
        bench.draw(draw)
        bench.generate(bench.twin, bench.prompts)
    bench.prompts = prompts
    return lambda: bench.generate(bench.twin, bench.prompts)


@dataclass(frozen=True)
class Contender:
    """A row of the table.

    `tokens` says what they have to do with stock's: they must be stock's, they are compared and shown, or they answer
    other prompts. `relays`: it runs the patched twin. `needs_prefix`: without a shared prefix it would be stock again.
    """

    prepare: Callable[[Bench], Call]
    tokens: Literal["exact", "compared", "other"]
    relays: bool = False
    needs_prefix: bool = False


CONTENDERS = {
    "stock": Contender(stock, "exact"),
    "static-cache": Contender(static_cache, "compared"),
    "continuous-batching": Contender(continuous_batching, "compared"),
    "prefix-copied": Contender(prefix_copied, "exact", needs_prefix=True),
    "no-prefix": Contender(no_prefix, "other", needs_prefix=True),
    "floor": Contender(floor, "other", needs_prefix=True),
    "relay-cold": Contender(relay_cold, "exact", relays=True),
    "relay-kept": Contender(relay_kept, "exact", relays=True),
}
