"""Several threads that generate, warm and clear at once: stock's tokens, and every call relayed."""

import copy
import random
from contextlib import suppress
from threading import Barrier

import pytest
import torch

import relay_hf
from relay_hf.testing import prompts
from tests.support.generating import generate
from tests.support.tiny_models import tiny_model

from .threads import Gate, together

THREADS, CALLS = 4, 25


def tree(seed):
    """Four rows that share 20 tokens, and two and two of them 18 more."""
    inputs = prompts(20, (30, 30, 30, 30), seed)
    ids = inputs["input_ids"]
    ids[1, 20:38], ids[3, 20:38] = ids[0, 20:38].clone(), ids[2, 20:38].clone()
    return inputs


def jobs():
    """Calls of every kind; those of one seed start alike."""
    short = {"max_new_tokens": 4, "min_new_tokens": 4}
    for seed in range(2):
        yield prompts(20, (3, 7, 1, 5), seed), short
        yield prompts(24, (6,), seed), short
        yield prompts(20, (9,), seed), short
        yield tree(seed), short
        yield prompts(20, (4, 2), seed), {**short, "num_beams": 2}
        yield prompts(20, (8,), seed), {**short, "num_beams": 3, "num_return_sequences": 2}


def storm(model, work, expected, seed, calls, start, disturb=None):
    """Calls drawn at random, with a disturbance before every third or so; returns those that are not stock's."""
    draw = random.Random(seed)
    start.wait(timeout=60)
    wrong = []
    for _ in range(calls):
        index = draw.randrange(len(work))
        if disturb is not None and draw.random() < 0.3:
            disturb(draw)
        inputs, options = work[index]
        if not torch.equal(generate(model, inputs, **options), expected[index]):
            wrong.append(index)
    return wrong


@pytest.mark.parametrize(
    ("budget", "calls"), [(None, CALLS), (30_000, 10), (0, 10)], ids=["kept", "evicted", "nothing kept"]
)
def test_threads_on_one_model(budget, calls):
    stock = tiny_model("llama")
    work = list(jobs())
    if budget == 0:  # of a single row nothing is relayed then
        work = [job for job in work if rows(job) > 1]
    expected = [generate(stock, inputs, **options) for inputs, options in work]
    model = relay_hf.patch_model(copy.deepcopy(stock), policy="always", max_store_bytes=budget)
    start = Barrier(THREADS)

    def disturb(draw):
        kind = draw.randrange(3)
        if kind == 0:
            model.relay.clear()
        elif kind == 1 and budget is None:
            warm(model, draw.randrange(2))
        else:
            _ = [repr(model.relay), model.relay.prefixes, model.relay.last, model.relay.stats()]

    wrong = together(
        *[lambda seed=seed: storm(model, work, expected, seed, calls, start, disturb) for seed in range(THREADS)]
    )
    assert wrong == [[]] * THREADS
    stats = model.relay.stats()
    assert (stats.calls, stats.relayed_calls) == (THREADS * calls, THREADS * calls)
    relay_hf.unpatch_model(model)


def rows(job):
    inputs, options = job
    return len(inputs["input_ids"]) * options.get("num_beams", 1)


def warm(model, seed):
    with suppress(relay_hf.RelayError):  # another thread has cleared what it went on from: see below
        model.relay.warm(prompts(20, (9,), seed)["input_ids"][0])


def test_patched_and_unpatched_models_side_by_side():
    stock = tiny_model("llama")
    work = list(jobs())
    expected = [generate(stock, inputs, **options) for inputs, options in work]
    model = relay_hf.patch_model(copy.deepcopy(stock), policy="always")
    start, models = Barrier(4), (model, stock, model, stock)
    wrong = together(*[lambda i=i: storm(models[i], work, expected, i, 12, start) for i in range(4)])
    assert wrong == [[]] * 4
    assert model.relay.stats().relayed_calls == 2 * 12
    assert not hasattr(stock, "relay")


def test_a_prefix_that_loses_what_it_goes_on_from_says_why(monkeypatch):
    model = relay_hf.patch_model(tiny_model("llama"), policy="always", trust=["*"])
    ids = prompts(40, (1,))["input_ids"][0]
    gate, norm, armed = Gate(), type(model.model.norm), []
    forward = norm.forward

    def wait(*args):
        if armed:
            gate.wait()
        return forward(*args)

    monkeypatch.setattr(norm, "forward", wait)  # before anything is kept: another forward is another model
    model.relay.warm(ids[:20])
    armed.append(True)
    with gate.held(lambda: model.relay.warm(ids[:40])) as running:
        model.relay.clear()
    with pytest.raises(relay_hf.RelayError, match=r"clear\(\) was called while .* prefilled; warm it again"):
        running.result()
    assert len(model.relay.warm(ids[:40])) == 40
