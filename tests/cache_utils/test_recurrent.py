"""Models with recurrent layers: each row starts from the state after the prefix, in every mode of generate()."""

import copy

import pytest
import torch

import relay_hf
from relay_hf.generation import prefill_hook
from relay_hf.generation.forward_rows import forward_rows
from relay_hf.model.view import ModelView
from relay_hf.testing import prompts
from tests.generation.test_exactness import MODES, assert_same, run
from tests.support.generating import cache_of
from tests.support.tiny_models import tiny_model

# Recurrent layers alone, that go on token by token and by many; beside attention; both in one layer; convolutions.
TYPES = ["mamba", "mamba2", "bamba", "falcon_h1", "lfm2", "qwen3_next", "inkling_text", "zamba"]
RAGGED = (3, 7, 2, 5)
_models = {}


@pytest.fixture(params=TYPES)
def model(request):
    """A pair: the stock model, and a patched copy of it."""
    if request.param not in _models:
        stock = tiny_model(request.param)
        _models[request.param] = (stock, relay_hf.patch_model(copy.deepcopy(stock), policy="always"))
    pair = _models[request.param]
    pair[1].relay.clear()
    return pair


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "chunked prefill"])
def test_modes(model, mode):
    stock, ours = model
    inputs = prompts(20, RAGGED)
    expected = run(stock, inputs, **MODES[mode])
    for reused in (0, 20):
        assert_same(expected, run(ours, inputs, **MODES[mode]))
        assert ours.relay.last.relayed, ours.relay.last
        assert ours.relay.last.prefix_tokens_reused == reused


@pytest.mark.parametrize("own", [(2, 2, 2), (1, 1), (9, 2, 30), (1, 40)])
def test_own_lengths(model, own):
    stock, ours = model
    inputs = prompts(20, own)
    assert_same(run(stock, inputs), run(ours, inputs))
    assert ours.relay.last.relayed, ours.relay.last


def test_equal_rows_share_all_but_their_last_tokens(model):
    stock, ours = model
    inputs = {name: value.repeat(4, 1) for name, value in prompts(20, (5,)).items()}
    assert_same(run(stock, inputs, do_sample=True), run(ours, inputs, do_sample=True))
    assert ours.relay.last.prefix_length >= 23


def test_a_kept_state_serves_prompts_that_start_with_all_of_its_tokens(model):
    stock, ours = model
    ours.relay.warm(prompts(20, (1,))["input_ids"][0, :20])
    longer, shorter = prompts(20, (6,)), {k: v[:, :19] for k, v in prompts(20, (1,)).items()}
    assert_same(run(stock, longer), run(ours, longer))
    assert ours.relay.last.prefix_tokens_reused == 20
    assert_same(run(stock, shorter), run(ours, shorter))
    assert ours.relay.last.prefix_tokens_reused == 0


def test_a_longer_prefix_goes_on_from_a_kept_one_where_states_can(model):
    stock, ours = model
    ours.relay.warm(prompts(40, (1,))["input_ids"][0, :20])
    inputs = prompts(40, RAGGED)
    assert_same(run(stock, inputs), run(ours, inputs))
    by_steps = stock.config.model_type in ("mamba", "zamba")
    assert ours.relay.last.prefix_tokens_reused == (0 if by_steps else 20)
    assert ours.relay.last.prefix_length == 40


@pytest.mark.parametrize("how", ["as returned", "deep-copied", "as a DynamicCache"])
def test_a_second_turn_on_a_returned_cache(model, how):
    stock, ours = model
    inputs = prompts(20, RAGGED)
    first = [run(m, inputs, eos_token_id=None) for m in (stock, ours)]
    assert_same(*first)
    name = ModelView.of(ours).cache_name
    caches = [cache_of(out) for out in first]
    assert isinstance(caches[1], relay_hf.RelayCache)
    holds_kv = bool(caches[1].kv_layers)
    if how == "deep-copied":
        caches[1] = copy.deepcopy(caches[1])
    if how == "as a DynamicCache":
        caches[1] = caches[1].to_dynamic()
    turn = prompts(0, (4, 9, 2, 6), seed=7)
    then = {
        "input_ids": torch.cat([first[0].sequences, turn["input_ids"]], dim=1),
        "attention_mask": torch.cat(
            [inputs["attention_mask"], torch.ones(4, 16, dtype=torch.int64), turn["attention_mask"]], dim=1
        ),
    }
    assert_same(*(run(m, then, **{name: cache}) for m, cache in zip((stock, ours), caches, strict=True)))
    goes_on = how != "as a DynamicCache" and holds_kv
    assert ours.relay.last.relayed == goes_on, ours.relay.last


@pytest.mark.parametrize(
    ("reason", "options"),
    [("chunked prefill", {"prefill_chunk_size": 8}), ("a mask with holes", {})],
)
def test_what_a_state_can_not_follow_is_left_to_stock(model, reason, options):
    stock, ours = model
    if options and not relay_hf.RelayCache(ours.config).kv_layers:
        said = []
        for each in (stock, ours):
            # Before Transformers 5.24 the one, since then the other: its chunks need a length, which a state has not.
            with pytest.raises(ValueError, match=r"Cannot use prefill chunking|`get_seq_length` can only") as raised:
                run(each, prompts(20, RAGGED), **options)
            said.append(str(raised.value))
        assert said[0] == said[1]
        assert reason in ours.relay.last.reason
        return
    inputs = prompts(20, RAGGED)
    if not options:
        inputs["attention_mask"][1, -3] = 0
    assert_same(run(stock, inputs, **options), run(ours, inputs, **options))
    assert reason in ours.relay.last.reason


def test_an_unknown_recurrent_type_is_left_to_stock(monkeypatch):
    stock = tiny_model("mamba2")
    ours = relay_hf.patch_model(copy.deepcopy(stock), policy="always")
    monkeypatch.delitem(relay_hf.model.architectures.ARCHITECTURES, "mamba2")
    assert_same(run(stock, prompts(20, RAGGED)), run(ours, prompts(20, RAGGED)))
    assert "type 'mamba2' are not known to go on from a shared state" in ours.relay.last.reason


def test_a_pad_between_the_prefix_and_a_rows_own_tokens_would_be_seen(monkeypatch):
    """Why rows go through in groups of one length."""
    stock = tiny_model("mamba2")
    ours = relay_hf.patch_model(copy.deepcopy(stock), policy="always")
    monkeypatch.setattr(prefill_hook, "forward_by_length", _with_pads)
    expected, got = (run(model, prompts(20, RAGGED)) for model in (stock, ours))
    assert float((expected.logits[0] - got.logits[0]).abs().max()) > 0.01


def _with_pads(call, asked, cache, shared):
    call.cache = cache
    unmasked = {**asked.inputs, "attention_mask": None}
    return forward_rows(call.facts, asked.input_ids, unmasked, cache, cache.rows.offset, None)
