"""Second turns: what a first one returned is given back, and more is said."""

import torch

from relay_hf.testing import prompts
from tests.support.generating import CACHE, cache_of

from .compare import INPUTS, NEW, assert_same, generate, seeded

CONTINUED = "a returned cache, continued"
SAID = prompts(0, (4, 9, 2, 6), seed=7)  # what the user says next, padded on its left


def ones(*shape):
    return torch.ones(*shape, dtype=torch.int64)


def two_turns(model, inputs=INPUTS, said=SAID, **options):
    """What the second turn gives, and what the first one gave."""
    first = generate(model, inputs, eos_token_id=None)
    rows = len(first.sequences)
    inputs = {
        "input_ids": torch.cat([first.sequences, said["input_ids"][:rows]], dim=1),
        "attention_mask": torch.cat([inputs["attention_mask"], ones(rows, NEW), said["attention_mask"][:rows]], dim=1),
    }
    second = generate(model, inputs, **{CACHE: cache_of(first)}, **options)
    # Stock writes into the first turn's cache, which a DynamicCache made of ours leaves alone.
    return [{name: value for name, value in out.items() if name != CACHE} for out in (first, second)]


def assert_turns(pair, call, reason):
    stock, ours = pair
    assert_same(seeded(call, ours), seeded(call, stock))
    report = ours.relay.last
    assert (report.relayed, report.reason.endswith(reason)) == (reason == CONTINUED, True), report


def filled(model, inputs=INPUTS):
    """A first turn's output, and the mask of all that is in it."""
    output = generate(model, inputs, eos_token_id=None)
    return output, torch.cat([inputs["attention_mask"], ones(len(output.sequences), NEW)], dim=1)
