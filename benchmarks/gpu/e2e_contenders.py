"""Who generates, end to end: each prepares itself untimed and returns the call that is timed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from relay_hf.cli.benchmark import contenders
from relay_hf.cli.benchmark.bench import Bench, patched_twin
from relay_hf.cli.benchmark.contenders import TimedCall
from relay_hf.cli.benchmark.workload import Workload

from .context import Context
from .e2e_bytes import PAGE, Bytes
from .e2e_cells import with_least_prefix

TEXT = {
    "stock": "generate() as it comes, with a DynamicCache",
    "prefix-copied": "the prefix prefilled once, its cache repeated for every row, both within the time",
    "continuous-batching": "generate_batch() as it comes, the setting up of its cache and graphs within the time",
    "relay-cold": "patched, policy 'always', nothing kept",
    "relay-kept": "patched, policy 'always', the prefix kept from before",
    "relay-16": "relay-kept with a shared prefix of 16 tokens where the cell has none: with none, a call is stock's",
    "static-cache": "generate(cache_implementation='static'), which compiles decode steps; measured after the others",
}


class E2EBench(Bench):
    """A bench with a second patched twin, so that one can keep a prefix (and what was prepared for it) throughout."""

    def __init__(self, workload: Workload, model: PreTrainedModel, context: Context) -> None:
        super().__init__(workload, "always", model)
        self.cold = patched_twin(model, policy="always")
        self.bytes = Bytes(workload.model, model.dtype.itemsize)
        self.free = context.free_bytes
        self.streamer: BaseStreamer | None = None

    def generate(self, model: PreTrainedModel, prompts: Tensor, **options: Any) -> Tensor:
        """As a `Bench` does, and shown to `streamer`, if there is one."""
        return super().generate(model, prompts, **{"streamer": self.streamer, **options})

    @contextmanager
    def asking(self, new: int) -> Iterator[None]:
        """Within it, calls generate so many tokens."""
        before, self.workload = self.workload, dataclasses.replace(self.workload, new=new)
        try:
            yield
        finally:
            self.workload = before


def _relay_cold(bench: E2EBench) -> TimedCall:
    bench.cold.relay.clear()
    return lambda: bench.generate(bench.cold, bench.prompts)


def _relay_kept(bench: E2EBench) -> TimedCall:
    return _kept(bench, bench.prompts, bench.workload.shared)


def _relay_16(bench: E2EBench) -> TimedCall:
    prefix = with_least_prefix(bench.workload).prompts()[:, : -bench.workload.own]
    prompts = torch.cat([prefix.to(bench.prompts.device), bench.prompts], dim=1)
    return _kept(bench, prompts, prefix.shape[1])


def _kept(bench: E2EBench, prompts: Tensor, shared: int) -> TimedCall:
    bench.twin.relay.warm(prompts[0, :shared])  # nothing to do where it is kept
    return lambda: bench.generate(bench.twin, prompts)


def _continuous_batching(bench: E2EBench) -> TimedCall:
    """Its pages are as many as the rows need without sharing, or as fit; its batches as long as one prompt."""
    rows, width = bench.prompts.shape
    wanted = rows * (1 + (width + bench.workload.new) // PAGE)
    fit = max(bench.bytes.least_pages(bench.workload), int(0.7 * bench.free()) // (PAGE * bench.bytes.token))
    room = ContinuousBatchingConfig(num_blocks=min(wanted, fit), max_batch_tokens=max(PAGE, width))
    config = GenerationConfig(max_new_tokens=bench.workload.new, do_sample=False, eos_token_id=-1, pad_token_id=0)
    prompts = bench.prompts.tolist()

    def call() -> Tensor:
        answers = bench.model.generate_batch(prompts, generation_config=config, continuous_batching_config=room)
        tokens = [answer.generated_tokens for answer in answers.values() if answer.error is None]
        if [len(each) for each in tokens] != [bench.workload.new] * rows:  # it reports failures in its log only
            errors = {str(answer.error) for answer in answers.values()} - {"None"}
            said = "; ".join(sorted(errors))[:200] or "its log says why"
            error = torch.OutOfMemoryError if "out of memory" in said else RuntimeError
            raise error(f"generate_batch() answered {len(tokens)} of {rows} prompts in full: {said}")
        return torch.tensor(tokens, device=bench.prompts.device)

    return call


@dataclass(frozen=True)
class Contender:
    """One of those that are compared.

    Attributes:
        prepare: untimed; returns the call.
        twin: the patched model that it runs, if any.
        first_token: whether a call for one token says what a prefill takes.
        same_prompts: whether its prompts are stock's, so that tokens can be compared.
    """

    prepare: Callable[[E2EBench], TimedCall]
    twin: Callable[[E2EBench], PreTrainedModel] | None = None
    first_token: bool = True
    same_prompts: bool = True


CONTENDERS = {
    "stock": Contender(contenders.stock),
    "prefix-copied": Contender(contenders.prefix_copied),
    "continuous-batching": Contender(_continuous_batching, first_token=False),
    "relay-cold": Contender(_relay_cold, lambda bench: bench.cold),
    "relay-kept": Contender(_relay_kept, lambda bench: bench.twin),
    "relay-16": Contender(_relay_16, lambda bench: bench.twin, same_prompts=False),
    "static-cache": Contender(contenders.static_cache),
}
