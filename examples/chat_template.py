"""Conversations with one system message, through the tokenizer's chat template.

The system message is prefilled before the first request, and stays for all that follow.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

import relay_hf
from relay_hf import showcase

SYSTEM = {"role": "system", "content": showcase.SYSTEM_PROMPT}


def main() -> int:
    """Answer two batches of 4 customers, with stock generate() and relayed."""
    arguments = showcase.options(__doc__)
    shown = showcase.load(arguments.model, size=arguments.size)
    model, tokenizer = shown.model, shown.tokenizer
    print(shown.about)

    def answer(questions: tuple[str, ...]) -> Tensor:
        conversations = [[SYSTEM, {"role": "user", "content": question}] for question in questions]
        inputs = tokenizer.apply_chat_template(
            conversations, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
        ).to(model.device)
        tokens = model.generate(**inputs, max_new_tokens=16, do_sample=False)
        return tokens[:, inputs.input_ids.shape[1] :]

    batches = {"first batch": showcase.QUESTIONS[:4], "second batch": showcase.QUESTIONS[4:8]}
    stock = [showcase.timed(f"stock, {name}", answer, batch) for name, batch in batches.items()]

    relay_hf.patch_model(model)
    # A template renders the system message alone as it renders it before a user's: its tokens are the same.
    system = tokenizer.apply_chat_template([SYSTEM], return_dict=True)["input_ids"]
    kept = showcase.timed("relay_hf, system message", lambda: model.relay.warm(system, pin=True))
    print(kept)
    relayed = []
    for name, batch in batches.items():
        relayed.append(showcase.timed(f"relay_hf, {name}", answer, batch))
        print(f"  of the {len(system)} tokens of the system message {model.relay.last.prefix_tokens_reused} were kept")

    print(f"{showcase.QUESTIONS[0]}\n  {tokenizer.decode(relayed[0][0], skip_special_tokens=True)!r}")
    same = all(torch.equal(ours, theirs) for ours, theirs in zip(relayed, stock, strict=True))
    return showcase.verdict(model, same)


if __name__ == "__main__":
    sys.exit(main())
