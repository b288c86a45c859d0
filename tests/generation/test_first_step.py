"""A model that takes another way for a single query: stock runs its first step again, inside the forward."""

import copy
import logging

import pytest
import torch
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList
from transformers.models.llama.modeling_llama import LlamaAttention

import relay_hf
from relay_hf.testing import prompts
from tests.support.fast_decode import FastLfm2, FastLlama, FastLlamaAttention
from tests.support.generating import CACHE, cache_of, embedded, generate
from tests.support.tiny_models import tiny_model

PADDED = prompts(20, (3, 7, 2, 5))
MISSED = "not all attention goes through Transformers' attention interface: layers [0, 1] did not"


def in_levels():
    ids = torch.randint(3, 97, (4, 48), generator=torch.Generator().manual_seed(0))
    ids[:, :20] = ids[0, :20]
    ids[:2, :40], ids[2:, :40] = ids[0, :40].clone(), ids[2, :40].clone()
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def with_a_hole():
    inputs = {name: value.clone() for name, value in PADDED.items()}
    inputs["attention_mask"][1, -4] = 0
    return inputs


ONE = {name: value[1:2] for name, value in prompts(20, (3, 7)).items()}
CALLS = {
    "greedy": (PADDED, {}),
    "sampled": (PADDED, {"do_sample": True}),
    "samples of a prompt": (ONE, {"do_sample": True, "num_return_sequences": 4}),
    "beams": (PADDED, {"num_beams": 3}),
    "sampled beams": (PADDED, {"num_beams": 2, "do_sample": True, "num_return_sequences": 2}),
    "levels": (in_levels(), {}),
    "a hole": (with_a_hole(), {}),
    "chunks": (PADDED, {"prefill_chunk_size": 4}),
    "one row": (ONE, {}),
    "two tokens": (PADDED, {"max_new_tokens": 2, "min_new_tokens": 2}),
    "penalties": (PADDED, {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2}),
}


def pair(kind=FastLlama):
    stock = kind.tiny()
    return stock, relay_hf.patch_model(copy.deepcopy(stock), policy="always", trust=["*"])


def seeded(model, inputs, **options):
    torch.manual_seed(0)
    return generate(model, inputs, **options)


def assert_left_to_stock(model, reason=MISSED):
    report = model.relay.last
    assert (report.relayed, report.reason, report.reason_source) == (False, reason, "model"), report
    assert report.backend == "stock"


# Recurrent layers have a state too, and take no chunks, and no mask with holes.
KINDS = [(FastLlama, what) for what in CALLS] + [(FastLfm2, what) for what in ("greedy", "beams", "one row")]


@pytest.mark.parametrize(("kind", "what"), KINDS)
def test_the_call_goes_on_as_stock_with_the_same_tokens(kind, what):
    inputs, options = CALLS[what]
    stock, ours = pair(kind)
    expected = seeded(stock, inputs, **options)
    reason = MISSED if kind is FastLlama else MISSED.replace("[0, 1]", "[1, 3]")
    for _ in range(2):
        assert torch.equal(seeded(ours, inputs, **options), expected)
        assert_left_to_stock(ours, reason)
        report = ours.relay.last
        assert report.prompt_tokens_computed == report.rows * int(inputs["attention_mask"].sum()) // len(
            inputs["input_ids"]
        )


def test_scores_and_the_returned_cache_are_stocks():
    stock, ours = pair()
    options = {"return_dict_in_generate": True, "output_logits": True, "num_beams": 2}
    theirs, mine = generate(stock, PADDED, **options), generate(ours, PADDED, **options)
    assert_left_to_stock(ours)
    for one, other in zip(mine.logits, theirs.logits, strict=True):
        torch.testing.assert_close(one, other)
    assert type(cache_of(mine)) is DynamicCache
    for one, other in zip(cache_of(mine).layers, cache_of(theirs).layers, strict=True):
        assert torch.equal(one.keys, other.keys)  # not only close: stock's own prefill has filled it
        assert torch.equal(one.values, other.values)


def test_a_cache_by_hand_takes_what_stock_has_generated():
    stock, ours = pair()
    cache, theirs = relay_hf.RelayCache(ours.config), DynamicCache(config=stock.config)
    expected = generate(stock, PADDED, **{CACHE: theirs})
    outputs = generate(ours, PADDED, **{CACHE: cache}, return_dict_in_generate=True)
    assert_left_to_stock(ours)
    assert torch.equal(outputs.sequences, expected)
    assert cache_of(outputs) is cache
    for one, other in zip(cache.to_dynamic().layers, theirs.layers, strict=True):
        assert torch.equal(one.keys, other.keys)
    turn = {"input_ids": torch.nn.functional.pad(expected, (0, 3), value=7)}
    turn["attention_mask"] = torch.nn.functional.pad(PADDED["attention_mask"], (0, 15), value=1)
    assert torch.equal(generate(ours, turn, **{CACHE: cache}), generate(stock, turn, **{CACHE: theirs}))
    assert_left_to_stock(ours, f"{MISSED}; continued on a DynamicCache")


def test_the_model_is_marked_so_that_later_calls_compute_nothing_in_vain(caplog):
    stock, ours = pair()
    theirs, mine = embedded(stock), embedded(ours)
    generate(ours, PADDED)
    first = sum(mine)
    mine.clear()
    generate(stock, PADDED)
    assert first > sum(theirs)  # the relayed prefill, once
    for _ in range(2):
        mine.clear()
        generate(ours, PADDED)
        assert mine == theirs
        assert_left_to_stock(ours)
    generate(copy.deepcopy(ours), PADDED)  # a copy knows it too
    assert ours.relay.explain(**PADDED).reason == MISSED
    with pytest.raises(relay_hf.RelayError, match="layers"):
        ours.relay.warm([5] * 30)
    (said,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert MISSED in said


def replace_modules(model):
    for index, layer in enumerate(model.model.layers):
        before, layer.self_attn = layer.self_attn, LlamaAttention(model.config, index).eval()
        layer.self_attn.load_state_dict(before.state_dict())


def change_class(model):
    for layer in model.model.layers:
        layer.self_attn.__class__ = LlamaAttention


@pytest.mark.parametrize("change", [replace_modules, change_class])
def test_a_model_that_is_changed_is_tried_anew(change):
    stock, ours = pair()
    expected = generate(stock, PADDED)
    generate(ours, PADDED)
    assert_left_to_stock(ours)
    change(ours)
    assert torch.equal(generate(ours, PADDED), expected)
    assert ours.relay.last.relayed, ours.relay.last
    assert ours.relay._hooks.findings.refusal is None


@pytest.mark.parametrize("forget", [lambda m: m.relay.clear(), lambda m: relay_hf.patch_model(m, policy="always")])
def test_clear_and_new_options_have_the_model_tried_anew(forget):
    stock, ours = pair()
    computed = embedded(ours)
    expected = generate(stock, PADDED)
    for _ in range(2):
        counts = []
        for _ in range(2):
            computed.clear()
            assert torch.equal(generate(ours, PADDED), expected)
            assert_left_to_stock(ours)
            counts.append(sum(computed))
        assert counts[0] > counts[1]  # it was tried, and then not again
        forget(ours)


class OtherKeys(FastLlamaAttention):
    """It gives attention other keys than the cache has handed it, so that attention itself can't be relayed."""

    def decode(self, hidden_states, **kwargs):
        cache = kwargs[CACHE]
        update = cache.update
        cache.update = lambda *args, **named: tuple(part.clone() for part in update(*args, **named))
        try:
            return LlamaAttention.forward(self, hidden_states, **kwargs)
        finally:
            del cache.update


class GivesOtherKeys(FastLlama):
    attention = OtherKeys


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}])
def test_what_attention_itself_refuses_in_the_first_step_is_run_again_too(options):
    stock, ours = pair(GivesOtherKeys)
    expected = generate(stock, PADDED, **options)
    for _ in range(2):
        assert torch.equal(generate(ours, PADDED, **options), expected)
        assert_left_to_stock(ours, "layer 0 attends to other keys than it gave the cache")


class Raising(FastLlamaAttention):
    """Its code for a single query can't read a RelayCache."""

    def decode(self, hidden_states, **kwargs):
        if isinstance(kwargs[CACHE], relay_hf.RelayCache):
            raise IndexError("no such key")
        return super().decode(hidden_states, **kwargs)


class RaisesInAStep(FastLlama):
    attention = Raising


def test_an_error_of_the_models_own_code_in_the_first_step_counts_like_one_of_the_prefill():
    """Its outputs can't be replaced, so the caller sees it. A second one shows that the model is the cause."""
    stock, ours = pair(RaisesInAStep)
    for _ in range(2):
        with pytest.raises(IndexError, match="no such key"):
            generate(ours, PADDED)
    assert torch.equal(generate(ours, PADDED), generate(stock, PADDED))
    assert_left_to_stock(ours, "a relayed decode step raised IndexError: no such key")
    ours.relay.clear()
    with pytest.raises(IndexError, match="no such key"):
        generate(ours, PADDED)


def test_an_error_of_the_callers_code_before_the_first_step_is_not_the_models():
    _, ours = pair()

    class Raises(LogitsProcessor):
        def __call__(self, input_ids, scores):
            raise IndexError("the caller's")

    for _ in range(3):
        with pytest.raises(IndexError, match="the caller's"):
            generate(ours, PADDED, logits_processor=LogitsProcessorList([Raises()]))
    assert ours.relay._hooks.findings.refusal is None


def test_a_returned_cache_whose_first_step_misses_raises_once_and_the_model_is_marked():
    """The first turn made one token, so it had no step."""
    stock, ours = pair()
    turns = []
    for model in (stock, ours):
        first = generate(model, PADDED, max_new_tokens=1, min_new_tokens=1, return_dict_in_generate=True)
        turn = {"input_ids": torch.nn.functional.pad(first.sequences, (0, 3), value=7)}
        turn["attention_mask"] = torch.nn.functional.pad(PADDED["attention_mask"], (0, 4), value=1)
        turns.append((turn, cache_of(first)))
    assert ours.relay.last.relayed
    kept = copy.deepcopy(turns[1][1])
    with pytest.raises(relay_hf.RelayError, match="layers"):
        generate(ours, turns[1][0], **{CACHE: turns[1][1]})
    expected = generate(stock, turns[0][0], **{CACHE: turns[0][1]})
    assert torch.equal(generate(ours, turns[1][0], **{CACHE: kept}), expected)
    assert_left_to_stock(ours, f"{MISSED}; continued on a DynamicCache")


def loop_of_the_caller(model, input_ids, logits_processor, stopping_criteria, generation_config, **inputs):
    outputs = model._prefill(input_ids, generation_config, inputs)
    cache = cache_of(outputs)
    for _ in range(3):
        token = outputs.logits[:, -1].argmax(-1, keepdim=True)
        input_ids = torch.cat([input_ids, token], dim=1)
        inputs["attention_mask"] = torch.nn.functional.pad(inputs["attention_mask"], (0, 1), value=1)
        positions = inputs["attention_mask"].sum(1, keepdim=True) - 1
        arguments = {CACHE: cache, "attention_mask": inputs["attention_mask"], "position_ids": positions}
        outputs = model(input_ids=token, **arguments)
    return input_ids


def test_in_a_loop_of_the_callers_a_miss_raises_once_and_the_model_is_marked():
    """Nobody knows how such a loop holds its cache."""
    stock, ours = pair()
    options = {"custom_generate": loop_of_the_caller}
    with pytest.raises(relay_hf.RelayError, match="layers"):
        generate(ours, PADDED, **options)
    assert torch.equal(generate(ours, PADDED, **options), generate(stock, PADDED, **options))
    assert_left_to_stock(ours)


def test_a_plain_model_keeps_nothing_of_the_prompt_behind_its_first_step():
    ours = relay_hf.patch_model(tiny_model("llama"), policy="always", trust=["*"])
    held = []

    class Look(LogitsProcessor):
        def __call__(self, input_ids, scores):
            (call,) = ours.relay._hooks._open
            held.append(call.first_step is not None)
            return scores

    generate(ours, PADDED, logits_processor=LogitsProcessorList([Look()]))
    assert ours.relay.last.relayed
    assert held == [True] + 11 * [False]


def test_with_hooks_on_the_model_a_miss_raises_once_and_the_model_is_marked():
    """They would run a second time."""
    stock, ours = pair()
    for model in (stock, ours):
        model.register_forward_hook(lambda module, inputs, outputs: outputs.__setitem__("logits", -outputs.logits))
    with pytest.raises(relay_hf.RelayError, match="not all attention goes through"):
        generate(ours, PADDED)
    assert torch.equal(generate(ours, PADDED), generate(stock, PADDED))
    assert_left_to_stock(ours, MISSED)


class FastLaterAttention(FastLlamaAttention):
    """Of which a single query takes another way from some length on."""

    def forward(self, hidden_states, *args, **kwargs):
        if kwargs[CACHE].get_seq_length(self.layer_idx) < LATER:
            return LlamaAttention.forward(self, hidden_states, *args, **kwargs)
        return super().forward(hidden_states, *args, **kwargs)


class FastLater(FastLlama):
    attention = FastLaterAttention


LATER = PADDED["input_ids"].shape[1] + 3


def test_a_later_miss_raises_once_and_the_model_is_marked():
    stock = FastLater.tiny()
    ours = relay_hf.patch_model(copy.deepcopy(stock), policy="always", trust=["*"])
    with pytest.raises(relay_hf.RelayError, match="not all attention goes through"):
        generate(ours, PADDED)
    assert torch.equal(generate(ours, PADDED), generate(stock, PADDED))
    assert_left_to_stock(ours, MISSED)
