"""Group sampling for reinforcement learning: n samples of each prompt, and the log-probability of every token drawn.

All prompts share their instructions, and the samples of a group the whole of their prompt: two levels.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor
from transformers import PreTrainedModel, set_seed

import relay_hf
from relay_hf import showcase

GROUPS, SAMPLES, NEW = 4, 4, 16


def log_probabilities(model: PreTrainedModel, tokens: Tensor, mask: Tensor) -> Tensor:
    """Of the last `NEW` tokens of each row, by a plain forward, as a trainer computes them: `[rows, NEW]`."""
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    output = model(tokens, attention_mask=mask, position_ids=positions, use_cache=False, logits_to_keep=NEW + 1)
    drawn = tokens[:, -NEW:, None]
    return output.logits[:, :-1].log_softmax(-1).gather(2, drawn)[..., 0]


@torch.no_grad()
def main() -> int:
    """Draw the groups with stock generate() and relayed, from one seed, and score them."""
    arguments = showcase.options(__doc__)
    shown = showcase.load(arguments.model, size=arguments.size)
    model = shown.model
    print(shown.about)
    inputs = shown.inputs(showcase.document_chats(GROUPS))
    rows = {name: value.repeat_interleave(SAMPLES, dim=0) for name, value in inputs.items()}
    # The distribution itself, without truncation and penalties, and samples of one length.
    how = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}
    how["min_new_tokens"] = NEW

    def samples() -> tuple[Tensor, Tensor]:
        set_seed(0)
        draws = {"num_return_sequences": SAMPLES, "max_new_tokens": NEW}
        output = model.generate(**inputs, **how, **draws, return_dict_in_generate=True, output_logits=True)
        drawn = output.sequences[:, -NEW:, None]
        return output.sequences, torch.stack(output.logits, 1).log_softmax(-1).gather(2, drawn)[..., 0]

    stock, _ = showcase.timed("stock", samples)
    relay_hf.patch_model(model)
    print(model.relay.explain(rows["input_ids"], rows["attention_mask"], max_new_tokens=NEW).tree)
    tokens, sampler = showcase.timed("relay_hf", samples)

    mask = torch.cat([rows["attention_mask"], torch.ones_like(tokens[:, -NEW:])], dim=1)
    trainer = showcase.timed("log-probabilities, forward", log_probabilities, model, tokens, mask)
    print(f"sampler and trainer differ by {(sampler - trainer).abs().max():.1e} in log-probability at most")

    # A toy: the longer the words, the better. Within a group, rewards count by how far they are off its mean.
    texts = shown.tokenizer.batch_decode(tokens[:, -NEW:], skip_special_tokens=True)
    rewards = torch.tensor([float(len(text)) for text in texts]).view(GROUPS, SAMPLES)
    advantages = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-6)
    for group, total in zip(advantages, trainer.sum(1).view(GROUPS, SAMPLES).tolist(), strict=True):
        scored = zip(group.tolist(), total, strict=True)
        print("  ".join(f"advantage {value:+.2f}, log-probability {log:.1f}" for value, log in scored))
    return showcase.verdict(model, torch.equal(tokens, stock))


if __name__ == "__main__":
    sys.exit(main())
