"""Second turns: a returned cache, given back in each way that Transformers allows."""

import copy
import inspect
from functools import partial

import pytest
import torch
from transformers import DynamicCache, GenerationMixin

import relay_hf
from relay_hf.model.upstream.behaviour import CHUNKS_GO_ON
from relay_hf.testing import prompts
from tests.support.generating import CACHE, cache_of

from .compare import INPUTS, NEW, NO_PREFILL, ONE, assert_same, assert_same_error, generate, keep_prefix, seeded
from .turns import CONTINUED, assert_turns, filled, ones, two_turns

# Before it kept the mask's length, Transformers fed an assisted second turn its whole text again, on top of what the
# cache held; and a chunked one until later.
GOES_ON_IN_PARTS = "_mask_length" in inspect.getsource(GenerationMixin._prefill)

TURNS = {
    "greedy": ({}, CONTINUED),
    "sampling, a penalty": ({"do_sample": True, "repetition_penalty": 1.3}, CONTINUED),
    "no cache": ({"use_cache": False}, "use_cache=False; continued on a DynamicCache"),
    "hidden states": ({"output_hidden_states": True}, "; continued on a DynamicCache"),
    "chunks": ({"prefill_chunk_size": 3}, CONTINUED if CHUNKS_GO_ON else "holds; continued on a DynamicCache"),
}
NOTHING = prompts(0, (0,))  # stock's assisted decoding expects a cache that lacks the last token alone
TURNS_OF_ONE = {
    "greedy": ({}, CONTINUED),
    **({"prompt lookup": ({"prompt_lookup_num_tokens": 3, "said": NOTHING}, NO_PREFILL)} if GOES_ON_IN_PARTS else {}),
}


@pytest.mark.parametrize("mode", TURNS)
def test_a_batch(pair, mode):
    options, reason = TURNS[mode]
    assert_turns(pair, partial(two_turns, **options), reason)


@pytest.mark.parametrize("mode", TURNS_OF_ONE)
def test_a_single_row_on_a_kept_prefix(pair, mode):
    options, reason = TURNS_OF_ONE[mode]
    keep_prefix(pair[1])
    assert_turns(pair, partial(two_turns, inputs=ONE, **options), reason)


def test_new_tokens_alone(pair):
    """The ids say what is new, the mask says what there is."""

    def call(model):
        output, mask = filled(model)
        new = torch.cat([output.sequences[:, -1:], torch.arange(5, 17).view(4, 3)], dim=1)
        inputs = {"input_ids": new, "attention_mask": torch.cat([mask, ones(4, 3)], dim=1)}
        return generate(model, inputs, **{CACHE: cache_of(output)})

    assert_turns(pair, call, CONTINUED)


def test_other_words_in_place_of_the_last_ones(pair):
    def call(model):
        cache = relay_hf.RelayCache(model.config) if hasattr(model, "relay") else DynamicCache()
        output = generate(model, eos_token_id=None, **{CACHE: cache})
        cache.crop(-3)
        ids = torch.cat([output.sequences[:, :-4], torch.arange(5, 25).view(4, 5)], dim=1)
        mask = torch.cat([INPUTS["attention_mask"], ones(4, ids.shape[1] - INPUTS["attention_mask"].shape[1])], dim=1)
        return generate(model, {"input_ids": ids, "attention_mask": mask}, **{CACHE: cache}).logits

    assert_turns(pair, call, CONTINUED)


def test_a_cache_that_was_gone_on_from_before(pair):
    """It holds more than the mask says, and stock hides some of what it then feeds."""

    def call(model):
        output, mask = filled(model)
        ids = torch.cat([output.sequences, torch.arange(5, 17).view(4, 3)], dim=1)
        inputs = {"input_ids": ids, "attention_mask": torch.cat([mask, ones(4, 3)], dim=1)}
        return [generate(model, inputs, **{CACHE: cache_of(output)}).logits for _ in range(2)]

    assert_turns(pair, call, "; continued on a DynamicCache")
    assert pair[1].relay.last.reason.startswith("attention_mask ends before what the returned cache holds")


def test_a_padded_cache_and_beams_are_refused_alike(pair):
    """What the cache has a row of, beams are to have several of."""

    def call(model):
        output, mask = filled(model)
        inputs = {"input_ids": output.sequences, "attention_mask": mask}
        generate(model, inputs, **{CACHE: cache_of(output)}, num_beams=2)

    assert_same_error(pair, call, "must match", "attention_mask has 8 rows, and this RelayCache 4")


@pytest.mark.parametrize("options", [{"do_sample": True}, {"num_beams": 3}], ids=["samples", "beams"])
def test_a_copy_for_each_of_several_answers(pair, options):
    """A copied cache, its rows repeated: Transformers' own way to several answers from one cache."""

    def call(model):
        output, mask = filled(model)
        cache = copy.deepcopy(cache_of(output))
        cache.batch_repeat_interleave(3)
        inputs = {"input_ids": output.sequences, "attention_mask": mask}
        if "num_beams" not in options:
            inputs = {name: value.repeat_interleave(3, dim=0) for name, value in inputs.items()}
        return generate(model, inputs, **{CACHE: cache}, **options)

    assert_turns(pair, call, CONTINUED)
    assert pair[1].relay.last.rows == 12


def test_what_a_returned_cache_holds(pair):
    """Key for key and value for value, in the caller's columns."""
    stock, ours = pair
    (expected, mask), (got, _) = filled(stock), filled(ours)
    for one, other in zip(cache_of(expected).layers, cache_of(got).to_dynamic().layers, strict=True):
        columns = mask[:, :-1][:, -one.keys.shape[2] :, None].bool()  # the last token has not been through the model
        for stocks, ours_ in ((one.keys, other.keys), (one.values, other.values)):
            assert_same(ours_ * columns[:, None], stocks * columns[:, None])


@pytest.mark.parametrize("turns_before", [0, 1])
def test_a_cache_held_over_a_call_that_is_not_relayed(pair, turns_before):
    """The caller's cache object has to hold what was said meanwhile: the next call brings new tokens alone."""

    def call(model):
        cache = relay_hf.RelayCache(model.config) if hasattr(model, "relay") else DynamicCache()
        inputs, outputs = INPUTS, []
        for turn in range(turns_before + 2):
            untouched = {"output_hidden_states": True} if turn == turns_before else {}
            output = generate(model, inputs, **{CACHE: cache}, eos_token_id=None, **untouched)
            outputs.append(output.logits)
            mask = torch.cat([inputs["attention_mask"], ones(4, NEW + 3)], dim=1)
            new = torch.cat([output.sequences[:, -1:], torch.arange(5, 17).view(4, 3)], dim=1)
            inputs = {"input_ids": new, "attention_mask": mask}
        return outputs

    stock, ours = pair
    assert_same(seeded(call, ours), seeded(call, stock))
