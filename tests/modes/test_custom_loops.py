"""Decoding loops that are not Transformers' own, passed to generate() as `custom_generate`."""

from functools import partial

import pytest

from . import loops
from .compare import INPUTS, NO_PREFILL, assert_relayed, assert_same, assert_untouched, generate, seeded

RELAYED = {
    "from the prefill": (loops.from_the_prefill, {"repetition_penalty": 1.4}, 4),
    "from the prefill, chunks": (loops.from_the_prefill, {"prefill_chunk_size": 3}, 4),
    "from the prefill, several rows a prompt": (
        loops.from_the_prefill,
        {"do_sample": True, "num_return_sequences": 2},
        8,
    ),
    "around the model's own": (loops.around_the_models_own, {"do_sample": True, "twice": True}, 4),
    "choosing among continuations": (loops.choosing_among_continuations, {}, 4),
    "taking drafts back": (loops.taking_drafts_back, {}, 4),
    "hiding a token": (loops.hiding_a_token, {}, 4),
    "last logits": (loops.prompt_logits, {}, 4),
}


@pytest.mark.parametrize("mode", RELAYED)
def test_a_loop_that_starts_with_the_prefill_is_relayed(pair, mode):
    loop, options, rows = RELAYED[mode]
    assert_relayed(pair, lambda model: generate(model, custom_generate=loop, **options), rows=rows)


@pytest.mark.parametrize("options", [{"repetition_penalty": 1.4}, {"cache_implementation": "static"}], ids=str)
def test_a_loop_that_starts_by_itself_passes_through(pair, options):
    assert_untouched(pair, partial(generate, custom_generate=loops.with_a_cache_of_its_own, **options), NO_PREFILL)


def test_a_loop_that_records_gradients_passes_through(pair):
    output = assert_untouched(
        pair, partial(generate, custom_generate=loops.recording_gradients), "gradients are recorded"
    )
    assert output[1]


def test_a_loop_that_calls_generate_is_relayed_inside(pair):
    stock, ours = pair
    before = ours.relay.stats().relayed_calls
    call = partial(generate, custom_generate=loops.calling_generate)
    assert_same(seeded(call, ours), seeded(call, stock))
    assert ours.relay.stats().relayed_calls == before + 1


def test_positions_that_a_loop_counts_are_the_callers(pair):
    assert_untouched(
        pair, partial(generate, custom_generate=loops.counting_by_itself), "position_ids were given by the caller"
    )


def test_inputs_that_a_loop_gives_are_the_callers(pair):
    reason = "the call has an input that is not relayed, 'output_router_logits'"
    assert_untouched(pair, partial(generate, custom_generate=loops.adding_an_input), reason)
    assert pair[1].relay.last.reason_source == "call"


@pytest.mark.parametrize("keep", [0, 3, 10])
def test_a_loop_that_reads_logits_of_the_prompt_passes_through(pair, keep):
    """Of all columns, of some of the rows' own, of more than the rows' own."""
    call = partial(generate, custom_generate=loops.prompt_logits, logits_to_keep=keep)
    logits = assert_untouched(pair, call, "logits of prompt tokens are asked for")
    assert logits.shape[1] == (keep or INPUTS["input_ids"].shape[1])
