"""What a decode step of a tiny model costs on the host, where there is next to nothing to compute."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, StoppingCriteria

import relay_hf

LAYERS, STEPS = 16, 200


@dataclass
class Stamps(StoppingCriteria):
    """The time at which each step of a generate() ends."""

    seconds: list[float] = field(default_factory=list)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Never stops."""
        self.seconds.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool)


def tiny_llama() -> LlamaForCausalLM:
    """Many layers with next to nothing in them."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "vocab_size": 1000}
    config = LlamaConfig(**sizes, num_hidden_layers=LAYERS, pad_token_id=0, eos_token_id=None)
    return LlamaForCausalLM(config).eval()


def step_seconds(model: PreTrainedModel, prompts: Tensor) -> float:
    """Median of the decode steps of a generate()."""
    stamps = Stamps()
    model.generate(prompts, max_new_tokens=STEPS + 1, do_sample=False, stopping_criteria=[stamps])
    # The first stamp is the prefill's.
    return statistics.median(b - a for a, b in zip(stamps.seconds, stamps.seconds[1:], strict=False))


def decode_step(rows: int = 8, shared: int = 64, rounds: int = 7) -> tuple[float, float]:
    """Milliseconds a layer that a decode step takes: stock's on a DynamicCache, and relayed."""
    model = tiny_llama()
    prompts = torch.randint(1, 1000, (rows, shared + 4))
    prompts[:, :shared] = prompts[0, :shared]
    stock, relayed = [], []
    for _ in range(rounds):
        stock.append(step_seconds(model, prompts))
        with relay_hf.patched(model, policy="always"):
            relayed.append(step_seconds(model, prompts))
            if not model.relay.last.relayed:
                raise RuntimeError(f"the call was not relayed: {model.relay.last.reason}")
    return 1e3 * statistics.median(stock) / LAYERS, 1e3 * statistics.median(relayed) / LAYERS
