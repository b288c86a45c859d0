"""Models that share otherwise: recurrent layers by their state, attention code of a model's own by stand-in tensors."""

import copy
from functools import partial

import pytest
import torch

from tests.support.generating import CACHE

from . import loops
from .compare import (
    NO_PREFILL,
    ONE,
    PREFIX,
    assert_relayed,
    assert_same,
    assert_same_error,
    assert_untouched,
    build_pair,
    generate,
    keep_prefix,
    seeded,
)
from .test_caches import relay_cache
from .turns import CONTINUED, assert_turns, two_turns

# What of it is shared, and what computes its attention. Qwen3-Next's recurrent layers have other code for one token
# than for several: each row keeps two, and one row here has one behind the prefix.
KINDS = {
    "qwen3_next": (PREFIX - 1, "torch"),
    "jamba": (PREFIX, "torch"),
    "gptj": (PREFIX, "model"),
    "bloom": (PREFIX, "model"),
}
RECURRENT = ("qwen3_next", "jamba")
OWN_CODE = ("gptj", "bloom")

MODES = {
    "greedy": ({}, 4),
    "sampling": ({"do_sample": True, "top_k": 20, "temperature": 1.3}, 4),
    "return sequences": ({"do_sample": True, "num_return_sequences": 3}, 12),
    "beams": ({"num_beams": 3, "num_return_sequences": 2}, 12),
    "beam sampling": ({"num_beams": 2, "do_sample": True}, 8),
    "processors": ({"repetition_penalty": 1.3, "no_repeat_ngram_size": 2}, 4),
    "guidance": ({"guidance_scale": 1.5}, 4),
    "rows that end": ({"eos_token_id": list(range(3, 50)), "max_new_tokens": 8}, 4),
    "a loop from the prefill": ({"custom_generate": loops.from_the_prefill}, 4),
    "a loop that takes drafts back": ({"custom_generate": loops.taking_drafts_back}, 4),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def relayed(kind, call, rows=4):
    prefix, backend = KINDS[kind]
    return assert_relayed(build_pair(kind), call, rows=rows, prefix=prefix, backend=backend)


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_is_relayed(kind, mode):
    options, rows = MODES[mode]
    relayed(kind, partial(generate, **options), rows)


def test_inference_mode(kind):
    def call(model):
        with torch.inference_mode():
            return generate(model)

    relayed(kind, call)


def test_a_relay_cache_by_hand(kind):
    relayed(kind, lambda model: generate(model, **{CACHE: relay_cache(model)}))


def test_a_second_turn(kind):
    assert_turns(build_pair(kind), two_turns, CONTINUED)


def test_a_single_row_on_a_kept_prefix(kind):
    stock, ours = build_pair(kind)
    ours.relay.clear()
    keep_prefix(ours)
    expected = seeded(partial(generate, inputs=ONE), stock)
    assert_same(seeded(partial(generate, inputs=ONE), ours), expected)
    assert (ours.relay.last.relayed, ours.relay.last.prefix_tokens_reused) == (True, PREFIX), ours.relay.last


def test_a_single_row_that_returns_padded(kind):
    """What is kept are the row's own columns, before which there is padding."""
    stock, ours = build_pair(kind)
    ours.relay.clear()
    padded = {name: torch.nn.functional.pad(value, (3, 0)) for name, value in ONE.items()}
    # Where layers are recurrent, their states are first known behind the answer, and then where the prompt came back.
    second = "a start that returned" if kind in RECURRENT else "a kept prefix"
    for reason in ("kept for later calls", second, "a kept prefix"):
        expected = seeded(partial(generate, inputs=padded), stock)
        assert_same(seeded(partial(generate, inputs=padded), ours), expected)
        assert ours.relay.last.reason.startswith(reason), ours.relay.last


@pytest.mark.parametrize("options", [{"use_cache": False}, {"output_hidden_states": True}], ids=str)
def test_what_passes_through(kind, options):
    assert_untouched(build_pair(kind), partial(generate, **options), "{}={}".format(*next(iter(options.items()))))


def test_a_loop_that_starts_by_itself(kind):
    call = partial(generate, custom_generate=loops.with_a_cache_of_its_own)
    assert_untouched(build_pair(kind), call, NO_PREFILL)


@pytest.mark.parametrize("kind", RECURRENT)
def test_assisted_decoding_is_refused_alike(kind):
    call = partial(generate, inputs=ONE, prompt_lookup_num_tokens=3)
    assert_same_error(build_pair(kind), call, "not supported with stateful models")


@pytest.mark.parametrize("kind", OWN_CODE)
def test_prompt_lookup_passes_through(kind):
    assert_untouched(build_pair(kind), partial(generate, inputs=ONE, prompt_lookup_num_tokens=3), NO_PREFILL)


@pytest.mark.parametrize("kind", RECURRENT)
def test_chunks_of_recurrent_layers_pass_through(kind):
    assert_untouched(build_pair(kind), partial(generate, prefill_chunk_size=4), "chunked prefill")


@pytest.mark.parametrize("kind", OWN_CODE)
def test_chunks_of_own_code(kind):
    stock, ours = build_pair(kind)
    pair = stock, copy.deepcopy(ours)  # what fails twice is not tried again
    assert_relayed(pair, partial(generate, prefill_chunk_size=4), backend="model")


@pytest.mark.parametrize("kind", OWN_CODE)
def test_a_relay_cache_by_hand_where_there_is_no_prefill_to_hook(kind):
    def call(model):
        return generate(model, ONE, prompt_lookup_num_tokens=3, **{CACHE: relay_cache(model)})

    stock, ours = build_pair(kind)
    assert_same(seeded(call, ours), seeded(call, stock))
