"""RelayCache does what Transformers asks of a cache, or says why not; and holds what it says it holds."""

import contextlib
import copy
import gc
import weakref
from dataclasses import replace

import pytest
import torch
from transformers import DynamicCache

import relay_hf
from relay_hf.cache_utils import RelayCache
from relay_hf.model.view import ModelView
from relay_hf.testing import prompts
from tests.support.generating import CACHE, cache_of, generate
from tests.support.tiny_models import tiny_model

RAGGED = (3, 7, 1, 5)
PREFIX, NEW = 20, 12


@pytest.fixture
def model():
    return relay_hf.patch_model(tiny_model("mistral"), policy="always")


@pytest.fixture
def cache(model):
    return filled(model)


def filled(model, own=RAGGED):
    out = generate(model, prompts(PREFIX, own), return_dict_in_generate=True)
    assert model.relay.last.relayed
    return cache_of(out)


def next_logits(model, cache, columns=None):
    """One more token for every row, on a copy of the cache."""
    columns = cache.get_seq_length() if columns is None else columns
    rows = len(RAGGED)
    mask = torch.nn.functional.pad(prompts(PREFIX, RAGGED)["attention_mask"], (0, columns + 1 - PREFIX - 7), value=1)
    ids = torch.arange(5, 5 + rows)[:, None]
    positions = mask.cumsum(1)[:, -1:] - 1
    with torch.no_grad():
        return model(ids, attention_mask=mask, position_ids=positions, **{CACHE: copy.deepcopy(cache)}).logits


def test_sizes(cache):
    own = 7 + NEW - 1
    assert cache.get_seq_length() == PREFIX + own
    assert cache.get_mask_sizes(1, 0) == (own + 1, PREFIX)
    assert cache.get_max_length() == 12  # the window, as stock's says
    assert not cache.is_compileable
    assert cache.is_initialized


def test_holds_prefix_once_and_own_per_row(model, cache):
    own = 7 + NEW - 1  # the last token has not been through the model
    heads, size, item = 2, 8, 4
    slots = PREFIX + len(RAGGED) * own
    column = heads * size * item * 2 * len(cache.layers)
    assert cache.nbytes() == slots * column
    assert cache.nbytes_reserved() == len(RAGGED) * column
    storages = {}
    for layer in cache.layers:
        for tensor in (*layer.own_tensors(), *(t for part in layer.shared for t in part.tensors())):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    assert sum(storages.values()) == cache.nbytes() + cache.nbytes_reserved()
    assert model.relay.last.kv_bytes == cache.nbytes()
    assert model.relay.last.kv_bytes_reserved == cache.nbytes_reserved()
    window = 12  # what stock's sliding layers hold is one less
    assert model.relay.last.kv_bytes_stock == len(RAGGED) * (window - 1) * heads * size * item * 2 * len(cache.layers)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "falcon_h1", "lfm2", "gptj"])
def test_a_stock_cache_tells_the_layers_that_the_configuration_does(family):
    config = tiny_model(family).config.get_text_config(decoder=True)

    def layers(like):
        kinds = ("sliding_window", "number_of_states")
        return [(type(x), *(getattr(x, kind, None) for kind in kinds)) for x in RelayCache(config, like=like).layers]

    partial = DynamicCache()
    partial.update(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), 0)  # lists but the layer that stored something
    expected = layers(None)
    assert layers(DynamicCache(config=config)) == layers(partial) == layers(DynamicCache()) == expected


def test_growth_is_geometric_and_slack_bounded(model):
    cache = filled(model)
    with torch.no_grad():
        for step in range(40):
            columns = cache.get_seq_length() + 1
            mask = torch.ones(4, columns, dtype=torch.int64)
            mask[:, : PREFIX + 7] = prompts(PREFIX, RAGGED)["attention_mask"]
            model(torch.full((4, 1), step), attention_mask=mask, **{CACHE: cache})
    layer = cache.layers[0]
    assert layer.own_length == 7 + NEW - 1 + 40
    assert layer.capacity <= 1.5 * layer.own_length


def test_crop_takes_own_tokens_and_leaves_the_rest_shared(model, cache):
    before = next_logits(model, cache)
    longer = copy.deepcopy(cache)
    with torch.no_grad():
        columns = longer.get_seq_length() + 2
        mask = torch.ones(4, columns, dtype=torch.int64)
        mask[:, : PREFIX + 7] = prompts(PREFIX, RAGGED)["attention_mask"]
        model(torch.full((4, 2), 9), attention_mask=mask, **{CACHE: longer})
    assert longer.get_seq_length() == cache.get_seq_length() + 2
    longer.crop(-2)
    torch.testing.assert_close(next_logits(model, longer), before)
    longer.crop(-12)  # of 18 own columns the first six are prefix in the row with one token of its own
    assert longer.is_shared
    with pytest.raises(ValueError, match="0 or negative"):
        longer.crop(3)


def test_reorder_and_row_changes_match_a_dynamic_cache(model, cache):
    dynamic = cache.to_dynamic()
    order = torch.tensor([2, 2, 0, 1])
    for change in ("reorder_cache", "batch_select_indices"):
        ours, theirs = copy.deepcopy(cache), copy.deepcopy(dynamic)
        getattr(ours, change)(order)
        getattr(theirs, change)(order)
        assert_same_content(ours.to_dynamic(), theirs)
    ours, theirs = copy.deepcopy(cache), copy.deepcopy(dynamic)
    ours.batch_repeat_interleave(2)
    theirs.batch_repeat_interleave(2)
    assert_same_content(ours.to_dynamic(), theirs)
    ours.batch_select_indices(torch.tensor([True, False] * 4))
    assert_same_content(ours.to_dynamic(), dynamic)


def test_segments_of_some_rows_follow_row_changes():
    # Without a window: a DynamicCache drops what lies before one.
    cache = filled(relay_hf.patch_model(tiny_model("llama"), policy="always"))
    for layer in cache.layers:
        (part,) = layer.shared
        doubled = part.clone()
        doubled.segment.key.mul_(2), doubled.segment.value.mul_(2)
        users = ((part, (0, 3)), (doubled, (2, 1)))
        layer.shared = [replace(one, segment=replace(one.segment, rows=rows)) for one, rows in users]
    dynamic = cache.to_dynamic()
    order = torch.tensor([1, 3, 3, 2, 0])
    for change, how in (("batch_select_indices", order), ("batch_repeat_interleave", 3)):
        ours, theirs = copy.deepcopy(cache), copy.deepcopy(dynamic)
        getattr(ours, change)(how)
        getattr(theirs, change)(how)
        assert_same_content(ours.to_dynamic(), theirs)


def assert_same_content(one, other):
    assert len(one.layers) == len(other.layers)
    for mine, theirs in zip(one.layers, other.layers, strict=True):
        torch.testing.assert_close(mine.keys, theirs.keys)
        torch.testing.assert_close(mine.values, theirs.values)


@pytest.mark.parametrize("family", ["llama", "mistral", "deepseek_v3"])
def test_to_dynamic_is_what_stock_holds(family):
    stock = tiny_model(family)
    ours = relay_hf.patch_model(copy.deepcopy(stock), policy="always")
    inputs = prompts(PREFIX, RAGGED)
    theirs = cache_of(generate(stock, inputs, return_dict_in_generate=True))
    mine = cache_of(generate(ours, inputs, return_dict_in_generate=True)).to_dynamic()
    attended = torch.nn.functional.pad(inputs["attention_mask"], (0, NEW - 1), value=1).bool()
    for one, other in zip(mine.layers, theirs.layers, strict=True):
        assert type(one) is type(other)
        kept = attended[:, -one.keys.shape[2] :]
        for name in ("keys", "values"):
            # Padding is zero here and arbitrary there.
            ours_part, stock_part = (getattr(x, name).transpose(1, 2)[kept] for x in (one, other))
            torch.testing.assert_close(ours_part, stock_part, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "mistral", "deepseek_v3", "falcon_h1", "gptj"])
def test_adopted_from_a_dynamic_cache_it_goes_on_alike(family):
    model = relay_hf.patch_model(tiny_model(family), policy="off")
    dynamic = cache_of(generate(model, prompts(PREFIX, RAGGED), return_dict_in_generate=True))
    cache = relay_hf.RelayCache(model.config)
    cache.adopt(dynamic)
    columns = dynamic.get_seq_length()
    assert cache.get_seq_length() == columns
    torch.testing.assert_close(next_logits(model, cache), next_logits(model, dynamic), atol=1e-4, rtol=1e-4)


CHANGES = {
    "crop": lambda cache: cache.crop(-3),
    "reorder": lambda cache: cache.reorder_cache(torch.tensor([3, 2, 1, 0])),
    "one token": lambda cache: None,
    "half the rows": lambda cache: cache.batch_select_indices(torch.tensor([0, 2, 1, 3])),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_adopted_is_copied_before_it_is_written(change):
    model = relay_hf.patch_model(tiny_model("llama"), policy="off")
    dynamic = cache_of(generate(model, prompts(PREFIX, RAGGED), return_dict_in_generate=True))
    cache = relay_hf.RelayCache(model.config)
    cache.adopt(dynamic)
    assert cache.layers[0].own()[0].data_ptr() == dynamic.layers[0].keys.data_ptr()
    before = [layer.keys.clone() for layer in dynamic.layers]
    CHANGES[change](cache)
    mask = torch.nn.functional.pad(prompts(PREFIX, RAGGED)["attention_mask"], (0, NEW), value=1)
    mask = mask[:, : cache.get_seq_length() + 1]
    with torch.no_grad():
        model(torch.full((4, 1), 5), attention_mask=mask, **{CACHE: cache})
    for layer, keys in zip(dynamic.layers, before, strict=True):
        assert torch.equal(layer.keys, keys)


def test_a_window_may_not_move_back_over_what_an_adopted_cache_has_dropped():
    model = relay_hf.patch_model(tiny_model("mistral"), policy="off")
    inputs = prompts(PREFIX, RAGGED)
    cache = relay_hf.RelayCache(model.config)
    cache.adopt(cache_of(generate(model, inputs, return_dict_in_generate=True)))
    columns = cache.get_seq_length()
    expected = next_logits(model, cache)
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, columns + 2 - PREFIX - 7), value=1)
    with torch.no_grad():
        model(torch.full((4, 2), 5), attention_mask=mask, **{CACHE: cache})
    cache.crop(-2)
    torch.testing.assert_close(next_logits(model, cache), expected)
    with pytest.raises(ValueError, match="back over tokens that are not held: a call which was not relayed"):
        cache.crop(-1)


@pytest.mark.parametrize("family", ["llama", "gptj", "falcon_h1"])
@pytest.mark.parametrize("rows", [1, 2])
def test_a_turn_of_other_rows_changes_nothing(family, rows):
    """Fewer than the cache has, which a write into its buffers would spread over all of them."""
    model = relay_hf.patch_model(tiny_model(family), policy="always")
    inputs = prompts(PREFIX, (5, 5, 5, 5))
    out = generate(model, inputs, return_dict_in_generate=True)
    cache, mask = cache_of(out), torch.nn.functional.pad(inputs["attention_mask"], (0, NEW), value=1)
    if family != "falcon_h1":
        cache.crop(-5)  # room, so that nothing grows
    some = {"input_ids": out.sequences[:rows], "attention_mask": mask[:rows]}
    columns = cache.get_seq_length()
    with pytest.raises(RuntimeError):
        generate(model, some, **{CACHE: cache})
    assert cache.get_seq_length() == columns


def test_a_mask_by_position_counts_like_one_by_name():
    stock = tiny_model("llama")
    ours = relay_hf.patch_model(copy.deepcopy(stock), policy="always")
    inputs = prompts(PREFIX, RAGGED)
    inputs["attention_mask"][1, -3] = 0
    with torch.no_grad():
        expected = stock(**inputs).logits
        got = ours(*inputs.values(), **{CACHE: relay_hf.RelayCache(ours.config)}).logits
    shown = inputs["attention_mask"].bool()
    torch.testing.assert_close(got[shown], expected[shown], atol=1e-4, rtol=1e-4)


INFERENCE_CHANGES = {
    "deepcopy": copy.deepcopy,
    "repeat": lambda cache: cache.batch_repeat_interleave(1) or cache,
    "select": lambda cache: cache.batch_select_indices(torch.arange(4)) or cache,
}


@pytest.mark.parametrize("change", INFERENCE_CHANGES)
@pytest.mark.parametrize("family", ["llama", "falcon_h1"])
def test_what_is_made_in_inference_mode_serves_outside_of_it(family, change):
    model = relay_hf.patch_model(tiny_model(family), policy="always")
    cache = filled(model)
    columns, expected = cache.get_seq_length(), next_logits(model, cache)
    with torch.inference_mode():
        changed = INFERENCE_CHANGES[change](cache)
    mask = torch.nn.functional.pad(prompts(PREFIX, RAGGED)["attention_mask"], (0, columns + 1 - PREFIX - 7), value=1)
    ids, positions = torch.arange(5, 9)[:, None], mask.cumsum(1)[:, -1:] - 1
    with torch.no_grad():
        got = model(ids, attention_mask=mask, position_ids=positions, **{CACHE: changed}).logits
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("family", ["falcon_h1", "mamba"])
@pytest.mark.parametrize("inside", [torch.inference_mode, torch.no_grad])
def test_a_cache_by_hand_is_given_back_filled_where_the_call_is_not_relayed(family, inside):
    model = relay_hf.patch_model(tiny_model(family), policy="off")
    cache = relay_hf.RelayCache(model.config)
    with inside():
        given = {ModelView.of(model).cache_name: cache}
        out = generate(model, prompts(PREFIX, RAGGED), **given, return_dict_in_generate=True)
    assert cache_of(out) is cache
    if family == "mamba":
        return
    assert cache.get_seq_length() == PREFIX + 7 + NEW - 1
    more = {"input_ids": torch.nn.functional.pad(out.sequences, (0, 1), value=5)}
    more["attention_mask"] = torch.nn.functional.pad(prompts(PREFIX, RAGGED)["attention_mask"], (0, NEW + 1), value=1)
    generate(model, more, **{CACHE: cache})
    assert model.relay.last.reason == "policy 'off'; continued on a DynamicCache"


def test_deepcopy_shares_segments_and_owns_the_rest(model, cache):
    twin = copy.deepcopy(cache)
    for mine, theirs in zip(twin.layers, cache.layers, strict=True):
        assert mine.shared[0] is theirs.shared[0]
        assert mine.own()[0].data_ptr() != theirs.own()[0].data_ptr()
        assert mine.rows is twin.rows
    assert twin.rows is not cache.rows
    before = next_logits(model, cache)
    twin.crop(-5)
    twin.reorder_cache(torch.tensor([3, 2, 1, 0]))
    torch.testing.assert_close(next_logits(model, cache), before)


def test_reset_empties(cache):
    cache.reset()
    assert cache.get_seq_length() == 0
    assert cache.nbytes() == 0
    assert not cache.is_shared


def test_update_outside_a_relayed_forward_raises(cache):
    key = torch.zeros(4, 2, 1, 8)
    with pytest.raises(relay_hf.RelayError, match="outside a forward of a model patched"):
        cache.update(key, key, 0)
    with pytest.raises(relay_hf.RelayError, match="to_dynamic"):
        generate(tiny_model("mistral"), prompts(40, (3, 3, 3, 3)), **{CACHE: cache})


def test_a_forward_by_hand_needs_the_mask_that_the_cache_was_filled_with(model, cache):
    ids = torch.full((4, 1), 5)
    with torch.no_grad(), pytest.raises(relay_hf.RelayError, match="attention_mask is needed"):
        model(ids, **{CACHE: cache})
    with torch.no_grad(), pytest.raises(relay_hf.RelayError, match="differs from the padding"):
        model(ids, attention_mask=torch.ones(4, cache.get_seq_length() + 1), **{CACHE: cache})
    with torch.no_grad(), pytest.raises(relay_hf.RelayError, match="attention_mask has 8 rows, and this RelayCache 4"):
        model(ids, attention_mask=torch.ones(8, cache.get_seq_length() + 1), **{CACHE: cache})
    with torch.no_grad(), pytest.raises(relay_hf.RelayError, match=r"got 4 dimensions. .*to_dynamic\(\)"):
        model(ids, attention_mask=torch.ones(4, 1, 1, cache.get_seq_length() + 1), **{CACHE: cache})
    assert model.config._attn_implementation == "sdpa"


def test_a_second_turn_that_masks_the_prefix_goes_on_as_stock():
    stock = tiny_model("llama")
    ours = relay_hf.patch_model(copy.deepcopy(stock), policy="always")
    inputs = prompts(PREFIX, RAGGED)
    results = []
    for model in (stock, ours):
        out = generate(model, inputs, return_dict_in_generate=True)
        mask = torch.nn.functional.pad(inputs["attention_mask"], (0, NEW), value=1)
        mask[:, 8:10] = 0
        results.append(generate(model, {"input_ids": out.sequences, "attention_mask": mask}, **{CACHE: cache_of(out)}))
    assert torch.equal(*results)
    assert not ours.relay.last.relayed
    assert "differs from the padding" in ours.relay.last.reason


def test_a_second_turn_in_other_circumstances_goes_on_as_stock():
    def autocast(model):
        return torch.autocast("cpu", dtype=torch.bfloat16)

    def dropout(model):
        model.train()
        model.config.attention_dropout = 0.1
        return contextlib.nullcontext()

    def policy_off(model):
        if hasattr(model, "relay"):
            relay_hf.patch_model(model, policy="off")
        return contextlib.nullcontext()

    reasons = {autocast: "under another autocast", dropout: "attention_dropout=0.1", policy_off: "policy 'off'"}
    for circumstance, reason in reasons.items():
        stock = tiny_model("llama")
        ours = relay_hf.patch_model(copy.deepcopy(stock), policy="always")
        inputs = prompts(PREFIX, RAGGED)
        results = []
        for model in (stock, ours):
            cache = cache_of(generate(model, inputs, return_dict_in_generate=True))
            longer = {name: torch.nn.functional.pad(value, (0, NEW + 3), value=5) for name, value in inputs.items()}
            longer["attention_mask"] = longer["attention_mask"].bool().long()
            with circumstance(model):
                torch.manual_seed(0)
                results.append(generate(model, longer, **{CACHE: cache}, max_new_tokens=4, min_new_tokens=4))
        assert torch.equal(*results)
        assert not ours.relay.last.relayed
        assert reason in ours.relay.last.reason


def test_memory_is_freed_with_the_cache(model, cache):
    layer = cache.layers[0]
    held = [weakref.ref(tensor) for tensor in (*layer.own_tensors(), *layer.shared[0].tensors())]
    del layer
    cache.reset()
    model.relay.clear()
    gc.collect()
    assert [reference() for reference in held] == [None] * 4


def test_layers_that_hold_something_else_are_refused():
    with pytest.raises(ValueError, match="layer 0 of the cache is a DynamicIndexedLayer"):
        relay_hf.RelayCache(tiny_model("deepseek_v32").config)
