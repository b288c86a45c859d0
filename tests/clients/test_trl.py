"""TRL's GRPO trainer with its default optimizer: samples drawn, scored and learnt from, and drawn again."""

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from relay_hf import showcase

from .texts import SYSTEM, chat

# TRL and Transformers' own trainer use names that Transformers 5.23 deprecates.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`(is_)?gradient_checkpointing(_enable|_disable)?` is deprecated:FutureWarning"
)

GROUPS, SAMPLES, NEW = 2, 4, 12
ROUNDS, ITERATIONS = 3, 2  # of drawing samples, and optimizer steps on each
TIMES = ("step_time", "train_runtime", "train_samples_per_second", "train_steps_per_second")


class Vowels:
    """A reward: the more vowels, the better. Keeps the completions that it was shown."""

    __name__ = "vowels"

    def __init__(self):
        self.seen = []

    def __call__(self, completions, completion_ids, **_):
        self.seen.append(completion_ids)
        return [float(sum(letter in "aeiou" for letter in text["content"])) for (text,) in completions]


class Answer(TrainerCallback):
    """After each round, the model as it is answers the same prompts."""

    def __init__(self, inputs):
        self.inputs = inputs
        self.answers = []

    def on_step_end(self, args, state, control, model, **_):
        if state.global_step % ITERATIONS == 0:
            model.eval()
            self.answers.append(model.generate(**self.inputs, max_new_tokens=NEW, do_sample=False))
            model.train()


def train(model, tokenizer, folder):
    """The completions of each round, the answers after each, and what was logged of each step."""
    inputs = tokenizer.apply_chat_template(
        [chat(question) for question in showcase.QUESTIONS[-4:]],
        add_generation_prompt=True,
        padding=True,
        return_dict=True,
        return_tensors="pt",
    )
    vowels, answer = Vowels(), Answer(inputs)
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=vowels,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list([{"prompt": chat(question)} for question in showcase.QUESTIONS[:12]]),
        callbacks=[answer],
        args=GRPOConfig(
            output_dir=str(folder),
            use_cpu=True,
            bf16=False,  # in which two words that nearly tie may change places
            seed=0,
            max_steps=ROUNDS * ITERATIONS,
            num_iterations=ITERATIONS,
            per_device_train_batch_size=GROUPS * SAMPLES,
            num_generations=SAMPLES,
            max_completion_length=NEW,
            learning_rate=3e-3,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
    )
    trainer.train()
    logged = [{name: value for name, value in step.items() if name not in TIMES} for step in trainer.state.log_history]
    return vowels.seen, answer.answers, logged


def test_grpo_draws_stocks_samples_and_takes_its_steps_and_no_prefix_outlives_one(
    stock, ours, tokenizer, reports, tmp_path
):
    system = len(tokenizer(SYSTEM).input_ids)
    expected = train(stock, tokenizer, tmp_path / "stock")
    ours.relay.warm(SYSTEM, tokenizer, pin=True)
    samples, answers, logged = train(ours, tokenizer, tmp_path / "ours")

    assert samples == expected[0]
    assert [len({tuple(ids) for ids in drawn}) for drawn in samples] == [GROUPS * SAMPLES] * ROUNDS
    assert all(torch.equal(got, wanted) for got, wanted in zip(answers, expected[1], strict=True))
    assert not torch.equal(answers[0], answers[-1])  # the steps change answers, so a stale prefix would too
    # To the last bit: losses and gradients come from plain forwards over equal tokens.
    assert logged == expected[2]
    assert all(abs(step["loss"]) > 1e-3 for step in logged[1:-1:ITERATIONS])
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), stock.parameters(), strict=True))

    # Of each round: its samples, and the answers after it. TRL replaces the model's forward, so nothing is kept.
    calls = reports()
    assert len(calls) == 2 * ROUNDS
    assert all(report.relayed for report in calls)
    assert all(report.prefix_length >= system for report in calls)
    assert [report.prefix_tokens_reused for report in calls] == [0] * len(calls)
    assert [(report.rows, report.levels) for report in calls[::2]] == [(GROUPS * SAMPLES, 2)] * ROUNDS
    assert not ours.relay.prefixes
