"""An evaluation with few-shot prompts: every prompt has the same examples in front, in every batch.

A classifier made of a prompt: which team does a customer's message belong to? Scored by exact match.
"""

from __future__ import annotations

import sys

import relay_hf
from relay_hf import showcase

SHOTS, BATCH = 12, 4
TASK = "Each message goes to one team: orders, delivery, returns, repair, advice or payment.\n\n"
# Of the showcase's 32 questions.
LABELS = (
    "orders delivery returns delivery repair advice payment delivery advice orders returns advice returns advice "
    "delivery orders advice payment orders repair payment advice repair orders advice returns advice delivery advice "
    "orders repair orders"
)
DATA = list(zip(showcase.QUESTIONS, LABELS.split(), strict=True))


def few_shot_prompt(message: str) -> str:
    """The task, the examples, and the message to classify."""
    shots = "".join(f"Message: {text}\nTeam: {label}\n\n" for text, label in DATA[:SHOTS])
    return f"{TASK}{shots}Message: {message}\nTeam:"


def main() -> int:
    """Evaluate on what is not an example, with stock generate() and relayed."""
    arguments = showcase.options(__doc__)
    shown = showcase.load(arguments.model, size=arguments.size)
    model, tokenizer = shown.model, shown.tokenizer
    print(shown.about)
    batches = [DATA[start : start + BATCH] for start in range(SHOTS, len(DATA), BATCH)]

    def evaluate() -> list[str]:
        predictions = []
        for batch in batches:
            inputs = tokenizer([few_shot_prompt(text) for text, _ in batch], padding=True, return_tensors="pt")
            # A penalty for words of the prompt, which the chat model has by default, would be one for the answers.
            tokens = model.generate(
                **inputs.to(model.device), max_new_tokens=4, do_sample=False, repetition_penalty=1.0
            )
            texts = tokenizer.batch_decode(tokens[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
            predictions += [text.strip().split("\n")[0] for text in texts]
            if (relay := getattr(model, "relay", None)) and (report := relay.last).relayed:
                print(f"  {report.prefix_length} tokens shared, {report.prefix_tokens_reused} of them from before")
        return predictions

    def exact_match(predictions: list[str]) -> str:
        truth = [label for batch in batches for _, label in batch]
        right = sum(guess == label for guess, label in zip(predictions, truth, strict=True))
        return f"{right} of {len(truth)}"

    stock = showcase.timed("stock", evaluate)
    # The tiny model computes so little that "auto" leaves these short calls to stock.
    relay_hf.patch_model(model, policy="always" if arguments.size == "tiny" else "auto")
    relayed = showcase.timed("relay_hf", evaluate)
    print(f"exact match: stock {exact_match(stock)}, relay_hf {exact_match(relayed)}")
    return showcase.verdict(model, relayed == stock)


if __name__ == "__main__":
    sys.exit(main())
