"""All contenders: those of `relay-hf bench`, continuous batching, sharing at one level, and calls that do less."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import ContinuousBatchingConfig, GenerationConfig

from relay_hf.cli.benchmark import contenders
from relay_hf.cli.benchmark.contenders import Contender, TimedCall, shares

from .bench import TreeBench
from .workloads import NamedWorkload


def continuous_batching(bench: TreeBench) -> TimedCall:
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


def no_prefix(bench: TreeBench) -> TimedCall:
    """Stock generate() on the own tokens alone: other tokens, less work."""
    return lambda: bench.generate(bench.model, bench.prompts[:, bench.workload.shared :])


def token_once(bench: TreeBench) -> TimedCall:
    """Each token once, with stock's loop: shared ones are prefilled once, and stock generate() runs on the own ones.

    A first call that shares prefixes and decodes with stock's loop takes as much at least. relay_hf may take less: it
    writes own KV in place, and a kept prefix is not prefilled at all.
    """

    def call() -> Tensor:
        for number in range(len(bench.workload.levels)):
            bench.prefill(bench.level(number))
        return bench.generate(bench.model, bench.prompts[:, bench.workload.shared :])

    return call


def one_level(bench: TreeBench) -> TimedCall:
    """The patched model, with nothing kept, sharing only what all rows do."""
    bench.first_level_twin.relay.clear()
    return lambda: bench.generate(bench.first_level_twin, bench.prompts)


def _is_plain(workload: NamedWorkload) -> bool:
    """Greedy, and an answer for each prompt."""
    return not workload.options


def _is_a_tree(workload: NamedWorkload) -> bool:
    """What all rows share is longer than what some of them can share behind it."""
    return bool(workload.later) and workload.prefix > workload.shared - workload.prefix + workload.own


_BASE = contenders.CONTENDERS
CONTENDERS = {
    "stock": _BASE["stock"],
    "static-cache": _BASE["static-cache"],
    "continuous-batching": Contender(continuous_batching, "compared", fits=_is_plain),
    "prefix-copied": _BASE["prefix-copied"],
    "no-prefix": Contender(no_prefix, "other", fits=shares),
    "token-once": Contender(token_once, "other", fits=shares),
    "one-level": Contender(one_level, "exact", lambda bench: bench.first_level_twin, _is_a_tree),
    "relay-cold": _BASE["relay-cold"],
    "relay-kept": _BASE["relay-kept"],
}
