"""A text-generation pipeline over chats that start alike: one line is added, and nothing else changes."""

from __future__ import annotations

import sys

from transformers import pipeline

import relay_hf
from relay_hf import showcase


def main() -> int:
    """Answer 8 customers in batches of 4, with stock generate() and relayed."""
    arguments = showcase.options(__doc__)
    shown = showcase.load(arguments.model, size=arguments.size)
    print(shown.about)

    chats = showcase.support_chats(8)
    generator = pipeline("text-generation", model=shown.model, tokenizer=shown.tokenizer)

    def answers() -> list[str]:
        outputs = generator(chats, batch_size=4, max_new_tokens=16, do_sample=False, return_full_text=False)
        return [output["generated_text"] for (output,) in outputs]

    stock = showcase.timed("stock", answers)
    relay_hf.patch_model(shown.model)  # the one line
    relayed = showcase.timed("relay_hf", answers)

    for question, answer in zip(showcase.QUESTIONS[:2], relayed, strict=False):
        print(f"{question}\n  {answer.strip()!r}")
    return showcase.verdict(shown.model, relayed == stock)


if __name__ == "__main__":
    sys.exit(main())
