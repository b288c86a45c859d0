"""The command line: `python -m benchmarks.quality [--output result.json]`."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch
from rich.console import Console

from benchmarks.numerics.errors import forced_logits
from benchmarks.options import output_file
from relay_hf import showcase
from relay_hf.cli.benchmark.record import write_json
from relay_hf.cli.environment import environment

from .record import counted, distance_record, first_differences, ratio_record, same_rows
from .runs import Answers, answers, distances, relayed_answers

# Who the assistant is, and how it writes. Processors without float16 arithmetic take minutes for all of the prompt.
SYSTEM = "\n## ".join(showcase.SYSTEM_PROMPT.split("\n## ")[:2])
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
console = Console(stderr=True, highlight=False)


def measure(model: str, questions: int, new: int, size: str | None = None) -> dict[str, Any]:
    """The record of a batch of questions in all dtypes. `size`: of the random model."""
    asked = showcase.QUESTIONS[:questions]
    chats = [[{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}] for question in asked]
    record: dict[str, Any] = {"questions": list(asked)}
    reference: Answers | None = None
    exact = torch.empty(0)
    for name, dtype in DTYPES.items():
        shown = showcase.load(model, size=size, dtype=dtype, device="cpu")
        inputs = shown.inputs(chats)
        console.print(f"{name}: {questions} questions, prompts of {inputs.input_ids.shape[1]:,} tokens, stock ...")
        stock = answers(shown.model, inputs, new)
        console.print(f"{name}: relayed ...")
        relayed = relayed_answers(shown.model, inputs, new)
        found: dict[str, Any] = {
            "answers": {"stock": shown.texts(stock.tokens), "relay_hf": shown.texts(relayed.tokens)},
            "differ": first_differences(stock, relayed, shown.tokenizer),
        }
        if reference is None:
            reference = stock
            record |= {"model": shown.about, "prompt_tokens": inputs.input_ids.shape[1], "new_tokens": new}
            console.print(f"{name}: the reference's logits ...")
            exact = forced_logits(shown.model, inputs, stock.tokens)
        else:
            found["as_in_float32"] = {"stock": same_rows(stock, reference), "relay_hf": same_rows(relayed, reference)}
            console.print(f"{name}: distances ...")
            pair = distances(shown.model, inputs, reference.tokens, exact)
            end = shown.model.generation_config.eos_token_id
            counts = counted(reference.tokens, -1 if end is None else end)
            found["distance"] = {
                name: distance_record(each, counts) for name, each in zip(("stock", "relay_hf"), pair, strict=True)
            }
            found["distance"]["over_stock"] = ratio_record(*pair, counts)
        record[name] = found
    return record


def main() -> int:
    """Measure; 1 if an answer in float32 differs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--model", default=showcase.CHAT_MODEL, help="as showcase.load() takes it")
    parser.add_argument("--size", help="of --model random")
    parser.add_argument("--questions", type=int, default=32)
    parser.add_argument("--new", type=int, default=32, help="tokens of each answer, at most (default: %(default)s)")
    parser.add_argument("--output", type=output_file, help="write the result here, as JSON")
    arguments = parser.parse_args()
    record = environment() | measure(arguments.model, arguments.questions, arguments.new, arguments.size)
    for name in DTYPES:
        distance = record[name].get("distance")
        console.print(f"{name}: {len(record[name]['differ'])} answers differ; {distance or ''}")
    if arguments.output:
        write_json(arguments.output, record)
    return int(bool(record["float32"]["differ"]))


if __name__ == "__main__":
    sys.exit(main())
