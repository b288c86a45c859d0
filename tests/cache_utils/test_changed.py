"""Keys and values that somebody changes in a returned RelayCache count as in stock's cache: no change is lost."""

import copy
import pickle

import pytest
import torch
from transformers import DynamicCache

import relay_hf
from relay_hf.cache_utils import RelayCache
from relay_hf.model.view import ModelView
from tests.support.generating import CACHE, cache_of, generate

from .returned import CASES, FLAT, WIDTH, assert_same_rows, assert_same_turn, filled, more, pair

JOINED = (
    "a returned cache of whole rows: keys or values were changed, it was cropped into its prefix, or an earlier call "
    "on it was not relayed"
)
CONTINUED = "a returned cache, continued"
CONTINUED_AS = "; continued on a DynamicCache"
PLACE = (..., slice(-4, -2), slice(None))  # columns that every row attends to, in a window too


def in_place(cache):
    for layer in kv_layers(cache):
        layer.values[PLACE] *= 3


def one_layer(cache):
    kv_layers(cache)[-1].keys[PLACE] += 1


def by_data(cache):
    """Which leaves no trace in a tensor's version."""
    kv_layers(cache)[0].keys.data[PLACE] = 0


def assigned(cache):
    for layer in kv_layers(cache):
        layer.keys = layer.keys * 1.5


def half_assigned(cache):
    """A layer that somebody has held since before it was changed."""
    layer = kv_layers(cache)[0]
    layer.values = layer.values + 0.5
    layer.keys[PLACE] = 0.25


EDITS = {edit.__name__: edit for edit in (in_place, one_layer, by_data, assigned, half_assigned)}


def kv_layers(cache):
    return [layer for layer in cache.layers if hasattr(layer, "keys")]


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("case", ["plain", "levels", "windows", "some windows", "latents", "recurrent", "both"])
def test_a_change_counts_in_the_next_turn(case, edit):
    stocks, ours, sequences, mask = filled(case)
    before = more(pair_of(case)[0], copy.deepcopy(stocks), sequences, mask)
    for cache in (stocks, ours):
        EDITS[edit](cache)
    after = more(pair_of(case)[0], copy.deepcopy(stocks), sequences, mask)
    assert float((torch.stack(before.logits) - torch.stack(after.logits)).abs().max()) > 1e-3  # so it would be seen
    assert_same_turn(case, ours, stocks, sequences, mask, JOINED)
    longer = torch.nn.functional.pad(sequences, (0, 8), value=9)
    assert_same_turn(case, ours, stocks, longer, mask, JOINED)  # and it goes on


def pair_of(case):
    return pair(CASES[case][0])


@pytest.mark.parametrize("case", ["plain", "windows"])
def test_a_change_counts_in_a_forward_by_hand(case):
    stocks, ours, _, mask = filled(case)
    mask = torch.nn.functional.pad(mask, (0, 2), value=1)
    inputs = {"input_ids": torch.full((4, 2), 9), "attention_mask": mask, "position_ids": mask.cumsum(1)[:, -2:] - 1}
    for cache in (stocks, ours):
        one_layer(cache)
    with torch.no_grad():
        for _ in range(2):
            expected, got = (
                m(**inputs, **{CACHE: c}).logits for m, c in zip(pair_of(case), (stocks, ours), strict=True)
            )
            torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
            mask = torch.nn.functional.pad(mask, (0, 2), value=1)
            inputs.update(attention_mask=mask, position_ids=mask.cumsum(1)[:, -2:] - 1)


def counted(cache):
    if isinstance(cache, RelayCache):
        cache.nbytes()
    return cache


USES = {
    "to_dynamic": lambda cache: cache.to_dynamic() if isinstance(cache, RelayCache) else cache,
    "deepcopy": copy.deepcopy,
    "pickle": lambda cache: pickle.loads(pickle.dumps(cache)),
    "a layer alone": lambda cache: one_by_one(cache, copy.deepcopy),
    "a pickled layer": lambda cache: one_by_one(cache, lambda layer: pickle.loads(pickle.dumps(layer))),
    "crop": lambda cache: cache.crop(-1) or cache,
    "crop of more": lambda cache: cache.crop(-15) or cache,
    "crop by layer": lambda cache: [layer.crop(-15) for layer in cache.layers] and cache,
    "reorder": lambda cache: cache.reorder_cache(torch.tensor([3, 1, 2, 0])) or cache,
    "select": lambda cache: cache.batch_select_indices(torch.tensor([3, 1, 0])) or cache,
    "repeat": lambda cache: cache.batch_repeat_interleave(2) or cache,
    "counted": counted,
    "a twin": lambda cache: copy.copy(cache),
    "another use of it": lambda cache: copy.deepcopy(copy.copy(cache)) and cache,
}


def one_by_one(cache, copied):
    new = DynamicCache()
    new.layers = [copied(layer) for layer in cache.layers]
    return new


@pytest.mark.parametrize("edit", ["in_place", "one_layer", "half_assigned"])
@pytest.mark.parametrize("use", USES)
def test_a_change_counts_in_every_use(use, edit):
    stocks, ours, *_ = filled("plain")
    for cache in (stocks, ours):
        EDITS[edit](cache)
    theirs, mine = USES[use](stocks), USES[use](ours)
    shape = theirs.layers[0].keys.shape
    assert_same_rows(mine, theirs, shown(mine, shape))


def shown(cache, shape):
    """The columns in which ours are not zero: those of no padding."""
    return (cache.layers[-1].keys != 0).any(dim=-1).any(dim=1) & torch.ones(shape[0], shape[2], dtype=torch.bool)


HELD = {
    "nothing": lambda cache: None,
    "a file": pickle.dumps,
    "a copy": copy.deepcopy,
    "a crop": lambda cache: cache.crop(-2),
    "a crop into the prefix": lambda cache: cache.crop(-20),
}


@pytest.mark.parametrize("between", HELD)
def test_a_tensor_that_was_read_is_the_caches_until_the_cache_moves_on(between):
    stocks, ours, sequences, mask = filled("plain")
    for cache in (stocks, ours):
        layer = cache.layers[0]
        held = layer.values
        HELD[between](cache)
        held[..., 10:12, :] = 0.5
    left = ours.get_seq_length() + 1
    assert_same_turn("plain", ours, stocks, sequences[:, :left], mask[:, :left], JOINED)


def test_fewer_tokens_may_be_assigned():
    stocks, ours, sequences, mask = filled("plain")
    for cache in (stocks, ours):
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys[:, :, 10:], layer.values[:, :, 10:]
    assert ours.get_seq_length() == stocks.get_seq_length() == mask.shape[1] - 10
    assert_same_turn("plain", ours, stocks, sequences[:, 10:], mask[:, 10:], JOINED)


def test_what_is_assigned_back_unchanged_is_no_change():
    """As peft does, to move a cache to its layers' devices."""
    stocks, ours, sequences, mask = filled("plain")
    for layer in ours.layers:
        layer.keys, layer.values = layer.keys.to("cpu"), layer.values.to("cpu")
    assert_same_turn("plain", ours, stocks, sequences, mask, CONTINUED)


def test_memory_of_what_was_read_is_free_once_the_cache_goes_on():
    _, ours, sequences, mask = filled("plain")
    list(ours)
    assert all(layer._shown for layer in ours.layers)
    more(pair("llama")[1], ours, sequences, mask)
    assert not any(layer._shown for layer in ours.layers)


def test_a_changed_cache_says_what_it_holds():
    stocks, ours, *_ = filled("both")
    one_layer(ours)
    held = [t for layer in stocks.layers for t in (layer.keys, layer.values)]
    states = [t for layer in stocks.layers for d in (layer.conv_states, layer.recurrent_states) for t in d.values()]
    expected = sum(t.numel() * t.element_size() for t in (*held, *states))
    assert (ours.nbytes(), ours.nbytes_reserved(), ours.nbytes_stock()) == (expected, 0, expected)
    assert not ours.is_shared
    assert ours.is_filled
    ours.reset()
    assert (ours.is_joined, ours.is_filled, ours.nbytes()) == (False, False, 0)


def test_states_that_somebody_holds_are_the_caches_after_a_change_too():
    stocks, ours, sequences, mask = filled("both")
    for cache in (stocks, ours):
        held = cache.layers[0].recurrent_states[0]
        one_layer(cache)
        copy.deepcopy(cache)
        held *= 2
    assert ours.is_joined
    assert_same_turn("both", ours, stocks, sequences, mask, JOINED)


def test_a_file_of_a_changed_cache_is_as_large_as_stocks():
    stocks, ours, *_ = filled("levels")
    for cache in (stocks, ours):
        in_place(cache)
    assert len(pickle.dumps(ours)) < len(pickle.dumps(stocks)) + 10_000
    assert pickle.loads(pickle.dumps(ours)).is_joined


def test_a_reset_cache_is_relayed_again():
    ours = filled("plain")[1]
    one_layer(ours)
    ours.take_over()
    ours.reset()
    model = pair("llama")[1]
    generate(model, FLAT, **{CACHE: ours})
    assert model.relay.last.relayed
    assert ours.is_shared


def test_a_change_by_a_shallow_copys_holder_counts_for_both():
    stocks, ours, sequences, mask = filled("plain")
    twin = copy.copy(ours)
    for cache in (stocks, ours):
        in_place(cache)
    ours.take_over()
    assert_same_turn("plain", twin, stocks, sequences, mask, JOINED)


STEPS = {
    "in_place": lambda cache: cache.layers[0].values[:, :, 21:24].mul_(4),
    "assigned": lambda cache: setattr(cache.layers[1], "keys", cache.layers[1].keys * 2),
    "read": lambda cache: list(cache),
}


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("step", STEPS)
def test_a_change_between_two_steps_counts_from_the_next_one_on(step, beams):
    found = []
    for model in pair("llama"):
        cache = RelayCache(model.config) if hasattr(model, "relay") else DynamicCache(config=model.config)

        def change(ids, scores, cache=cache):
            if ids.shape[1] == WIDTH + 4:
                STEPS[step](cache)
            return scores

        options = {"num_beams": beams, "return_dict_in_generate": True, "eos_token_id": None, "output_logits": True}
        found.append(generate(model, FLAT, **{CACHE: cache}, logits_processor=[change], **options))
    assert torch.equal(found[0].sequences, found[1].sequences)
    pairs = zip(*(torch.stack(each.logits) for each in found), strict=True)
    assert all(torch.allclose(*each, atol=1e-4, rtol=1e-4) for each in pairs)
    report = pair("llama")[1].relay.last
    assert report.relayed
    assert report.reason.endswith("; not after keys or values of its cache were changed") == (step != "read"), report
    assert cache_of(found[1]).is_joined == (step != "read")
    mask = torch.nn.functional.pad(FLAT["attention_mask"].repeat_interleave(beams, 0), (0, 11), value=1)
    assert_same_rows(cache_of(found[1]), cache_of(found[0]), mask)


def test_a_row_whose_cache_was_changed_is_not_kept_with_its_answer():
    stock = pair("llama")[0]
    one = {name: part[1:2] for name, part in FLAT.items()}
    model = relay_hf.patch_model(copy.deepcopy(stock), policy="always", min_prefix_length=4, trust=[""])
    between, kept = model._update_model_kwargs_for_generation, []
    for change in (list, in_place, assigned):
        model.relay.clear()

        def changing(outputs, *args, change=change, **kwargs):
            if change is not list:
                change(cache_of(outputs))
            return between(outputs, *args, **kwargs)

        model._update_model_kwargs_for_generation = changing
        generate(model, one)
        assert model.relay.last.relayed, model.relay.last
        kept.append(sum(map(len, model.relay.prefixes)))
    assert kept[0] > kept[1] == kept[2] == 0


def test_a_change_while_a_forward_runs_is_an_error():
    model = pair("llama")[1]
    for change in (lambda layer: layer.keys.zero_(), lambda layer: setattr(layer, "keys", layer.keys * 2)):
        _, ours, _, mask = filled("plain")
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)

        def hook(module, args, cache=ours, change=change):
            change(cache.layers[1])

        handle = model.model.layers[1].register_forward_pre_hook(hook)
        try:
            with (
                torch.no_grad(),
                pytest.raises(relay_hf.RelayError, match="layer 1 of this RelayCache were changed while"),
            ):
                model(torch.full((4, 1), 9), attention_mask=mask, **{CACHE: ours})
        finally:
            handle.remove()


def test_reading_while_a_forward_runs_is_none():
    stock_model, model = pair("llama")
    stocks, ours, _, mask = filled("plain")
    mask = torch.nn.functional.pad(mask, (0, 1), value=1)
    inputs = {"input_ids": torch.full((4, 1), 9), "attention_mask": mask, "position_ids": mask.cumsum(1)[:, -1:] - 1}
    handle = model.model.layers[1].register_forward_pre_hook(lambda module, args: list(ours) and None)
    try:
        with torch.no_grad():
            got = model(**inputs, **{CACHE: ours}).logits
            expected = stock_model(**inputs, **{CACHE: stocks}).logits
    finally:
        handle.remove()
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    assert_same_rows(ours, stocks, mask)
    ours.take_over()
    assert not ours.is_joined


@pytest.mark.parametrize("case", ["plain", "windows", "both"])
@pytest.mark.parametrize("step", ["in_place", "one_layer", "assigned", "nothing"])
def test_a_change_within_a_turn_that_is_not_relayed_counts(case, step):
    """The cache stays the caller's own object within the call too, and shows what stock's does."""
    stocks, ours, sequences, mask = filled(case)
    found, lengths = [], []
    for model, cache in zip(pair_of(case), (stocks, ours), strict=True):

        def change(ids, scores, cache=cache):
            lengths.append((cache.get_seq_length(), kv_layers(cache)[0].keys.shape))
            EDITS.get(step, list)(cache)
            return scores

        options = {"output_hidden_states": True, "logits_processor": [change]}
        found.append(more(model, cache, sequences, mask, **options))
    assert lengths[: len(lengths) // 2] == lengths[len(lengths) // 2 :]
    torch.testing.assert_close(torch.stack(found[1].logits), torch.stack(found[0].logits), atol=1e-4, rtol=1e-4)
    last = pair_of(case)[1].relay.last
    assert last.reason == "output_hidden_states=True needs every prompt token in every row" + CONTINUED_AS, last
    assert cache_of(found[1]) is ours
    assert_same_rows(ours, stocks, torch.nn.functional.pad(mask, (0, 8), value=1))
    sequences, mask = found[0].sequences, torch.nn.functional.pad(mask, (0, 8), value=1)
    assert_same_turn(case, ours, stocks, sequences, mask, JOINED)


def test_a_cache_of_states_alone_stays_the_callers_within_a_turn():
    stock, model = pair("mamba")
    held = []
    for each in (stock, model):
        first = generate(each, FLAT, return_dict_in_generate=True)
        name = ModelView.of(model).cache_name
        cache = next(value for value in first.values() if isinstance(value, DynamicCache))
        states = []
        inputs = {"input_ids": torch.nn.functional.pad(first.sequences, (0, 1), value=7)}

        def read(ids, scores, cache=cache, states=states):
            states.append(cache.layers[0].recurrent_states[0].clone())
            return scores

        for _ in range(2):
            out = generate(each, inputs, **{name: cache}, logits_processor=[read], return_dict_in_generate=True)
            assert any(value is cache for value in out.values())
        held.append(torch.stack(states))
    torch.testing.assert_close(*held, atol=1e-4, rtol=1e-4)
    assert model.relay.last.reason.startswith("a returned cache of recurrent layers alone"), model.relay.last


def replaced(cache, how):
    layers = cache.layers
    if how == "copies":
        cache.layers = [copy.deepcopy(layer) for layer in layers]
    elif how == "one copy":
        layers[-1] = copy.deepcopy(layers[-1])
    elif how == "swapped":
        layers[0], layers[1] = layers[1], layers[0]
    elif how == "another cache's":
        layers[0] = copy.deepcopy(cache).layers[0]
    elif how == "stock's own":
        layers[0] = cache.to_dynamic().layers[0] if isinstance(cache, RelayCache) else layers[0]


@pytest.mark.parametrize("how", ["copies", "one copy", "swapped", "another cache's", "stock's own"])
@pytest.mark.parametrize("case", ["plain", "levels", "windows", "latents", "recurrent", "both"])
def test_layers_that_the_user_replaces_count(case, how):
    stocks, ours, sequences, mask = filled(case)
    if (case, how) == ("recurrent", "swapped"):
        how = "copies"  # its layers are of two kinds
    for cache in (stocks, ours):
        replaced(cache, how)
    assert_same_turn(case, ours, stocks, sequences, mask, JOINED)
    assert ours.is_joined
