"""What is compared: each contender prepares itself untimed and returns the call that is timed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal
from unittest import mock

import torch
from torch import Tensor
from transformers import ContinuousBatchingConfig, DynamicCache, GenerationConfig, PreTrainedModel

import relay_hf
from relay_hf.generation import decide, sharing
from relay_hf.generation.decision import Decision
from relay_hf.generation.facts import CallFacts
from relay_hf.generation.sharing import SharingRules
from relay_hf.model.upstream.names import CACHE
from relay_hf.prefix import Prompts

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
        return torch.tensor([answer.generated_tokens for answer in answers.values()], device=bench.prompts.device)

    return call


def prefix_copied(bench: Bench) -> Call:
    """Transformers' own prefix idiom: prefill the first level once, copy the cache, repeat it for every row."""
    workload = bench.workload

    def call() -> Tensor:
        cache = copy.deepcopy(bench.prefill_level(0))
        cache.batch_repeat_interleave(workload.rows * workload.answers // workload.levels[0][1])
        return bench.generate(bench.model, bench.prompts, **{CACHE: cache})

    return call


def no_prefix(bench: Bench) -> Call:
    """Stock generate() on the own tokens alone: other tokens, less work."""
    return lambda: bench.generate(bench.model, bench.prompts[:, bench.workload.shared :])


def floor(bench: Bench) -> Call:
    """What no sharing scheme goes under: each shared token prefilled once, and stock generate() on the own ones."""

    def call() -> Tensor:
        for level in range(len(bench.workload.levels)):
            bench.prefill_level(level)
        return bench.generate(bench.model, bench.prompts[:, bench.workload.shared :])

    return call


def relay_cold(bench: Bench) -> Call:
    """The patched model, with nothing kept."""
    bench.twin.relay.clear()
    return lambda: bench.generate(bench.twin, bench.prompts)


def one_level(bench: Bench) -> Call:
    """The patched model, with nothing kept, sharing only what all rows do."""
    bench.twin.relay.clear()

    def find(facts: CallFacts, prompts: Prompts, rules: SharingRules) -> Decision:
        return sharing.find(facts, prompts, rules._replace(one_level=True))

    def call() -> Tensor:
        with mock.patch.object(decide, "find", find):
            return bench.generate(bench.twin, bench.prompts)

    return call


def relay_kept(bench: Bench) -> Call:
    """The patched model that has seen the prefix before, with other own tokens, and nothing else."""
    prompts = bench.prompts
    bench.twin.relay.clear()  # another contender of the round may have shown it this very prompt
    bench.draw(-1)
    bench.generate(bench.twin, bench.prompts)
    bench.prompts = prompts
    return lambda: bench.generate(bench.twin, bench.prompts)


@dataclass(frozen=True)
class Contender:
    """A row of the table.

    `tokens` says what they have to do with stock's: they must be stock's, they are compared and shown, or they answer
    other prompts. `relays`: it runs the patched twin. `needs_levels`: how many levels must be shared for it to be
    another than those before it. `plain`: it has no sampling, beams or return sequences.
    """

    prepare: Callable[[Bench], Call]
    tokens: Literal["exact", "compared", "other"]
    relays: bool = False
    needs_levels: int = 0
    plain: bool = False

    def fits(self, workload: Workload) -> bool:
        """Whether it says anything of a workload."""
        return len(workload.levels) >= self.needs_levels and not (self.plain and workload.options)


CONTENDERS = {
    "stock": Contender(stock, "exact"),
    "static-cache": Contender(static_cache, "compared"),
    "continuous-batching": Contender(continuous_batching, "compared", plain=True),
    "prefix-copied": Contender(prefix_copied, "exact", needs_levels=1),
    "no-prefix": Contender(no_prefix, "other", needs_levels=1),
    "floor": Contender(floor, "other", needs_levels=1),
    "one-level": Contender(one_level, "exact", relays=True, needs_levels=2),
    "relay-cold": Contender(relay_cold, "exact", relays=True),
    "relay-kept": Contender(relay_kept, "exact", relays=True),
}
