"""A conversation that streams: from its second turn on, only what is new is prefilled.

What counts here is the time to the first token. Each turn sends the whole conversation, as chat clients do.
"""

from __future__ import annotations

import sys
import time
from threading import Thread

from transformers import PreTrainedModel, PreTrainedTokenizerBase, TextIteratorStreamer

import relay_hf
from relay_hf import showcase

TURNS = (showcase.QUESTIONS[4], "And how long would that take?", "Thank you. Where do I send it?")


def reply(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, conversation: list[dict[str, str]]) -> str:
    """The next turn of the assistant, printed while it comes."""
    inputs = tokenizer.apply_chat_template(
        conversation, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    ).to(model.device)
    # Without a timeout an error in the thread would leave the loop below waiting.
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=300)
    call = {**inputs, "streamer": streamer, "max_new_tokens": 24, "do_sample": False}
    thread, start = Thread(target=model.generate, kwargs=call), time.perf_counter()
    thread.start()
    first, pieces = 0.0, []
    for piece in streamer:
        first = first or time.perf_counter() - start
        pieces.append(piece)
        print(piece, end="", flush=True)
    thread.join()
    print(f"\n  first token after {first:.2f} s, all after {time.perf_counter() - start:.2f} s")
    return "".join(pieces)


def converse(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The assistant's turns in a conversation of three."""
    conversation = [{"role": "system", "content": showcase.SYSTEM_PROMPT}]
    replies = []
    for question in TURNS:
        conversation.append({"role": "user", "content": question})
        replies.append(reply(model, tokenizer, conversation))
        conversation.append({"role": "assistant", "content": replies[-1]})
        if relay := getattr(model, "relay", None):
            computed, kept = relay.last.prompt_tokens_computed, relay.last.prefix_tokens_reused
            print(f"  prompt tokens computed {computed}, kept from before {kept}")
    return replies


def main() -> int:
    """Hold the same conversation with stock generate() and relayed."""
    arguments = showcase.options(__doc__)
    shown = showcase.load(arguments.model, size=arguments.size)
    print(f"{shown.about}\n\nstock")
    stock = converse(shown.model, shown.tokenizer)
    print("\nrelay_hf")
    # A single row pays in the next turn, and the tiny model computes too little for that: "auto" leaves it to stock.
    relay_hf.patch_model(shown.model, policy="always" if arguments.size == "tiny" else "auto")
    relayed = converse(shown.model, shown.tokenizer)
    print()
    return showcase.verdict(shown.model, relayed == stock)


if __name__ == "__main__":
    sys.exit(main())
