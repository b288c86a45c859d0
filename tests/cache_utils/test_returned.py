"""A returned RelayCache works as the DynamicCache that stock returns: each use is tried on both, and compared."""

import copy
import io
import pickle

import pytest
import torch
from transformers import DynamicCache, cache_utils

import relay_hf
from relay_hf.cache_utils import RelayCache, RelayLayer
from relay_hf.model.upstream.caches import BOTH_LAYERS, KV_LAYERS, STATE_LAYERS
from relay_hf.testing import prompts
from tests.support.generating import CACHE, cache_of, generate
from tests.support.tiny_models import tiny_model

from .returned import CASES, FLAT, assert_same_rows, assert_same_turn, filled, more, outcome, pair

CONTINUED = "a returned cache, continued"
JOINED = (
    "a returned cache of whole rows: keys or values were changed, it was cropped into its prefix, or an earlier call "
    "on it was not relayed"
)
ITERABLE = [case for case in CASES if case != "recurrent"]  # stock's recurrent layers have no keys to iterate over


@pytest.mark.parametrize("case", ITERABLE)
def test_iterating_gives_whole_rows_and_the_next_turn_is_relayed(case):
    stocks, ours, sequences, mask = filled(case)
    assert_same_rows(ours, stocks, mask)
    assert all(layer.keys is layer.keys and layer.values is layer.values for layer in ours.layers)
    if case != "beams":  # its rows are several answers each
        assert_same_turn(case, ours, stocks, sequences, mask, CONTINUED)
        assert_same_rows(ours, stocks, torch.nn.functional.pad(mask, (0, 8), value=1))


def test_iterating_over_recurrent_layers_raises_alike():
    stocks, ours, *_ = filled("recurrent")
    assert outcome(list, ours) is outcome(list, stocks) is AttributeError
    for index in ours.kv_layers:
        assert ours.layers[index].keys.shape == stocks.layers[index].keys.shape


ANSWERS = {
    "len": len,
    "is a DynamicCache": lambda cache: isinstance(cache, DynamicCache),
    "length": lambda cache: [outcome(cache.get_seq_length, index) for index in range(len(cache))],
    "longest": lambda cache: [cache.get_max_length(), *map(cache.get_max_length, range(len(cache)))],
    "longest that peft asks for": lambda cache: cache.max_cache_len,
    "batch size": lambda cache: cache.batch_size,
    "initialized": lambda cache: cache.is_initialized,
    "croppable": lambda cache: cache.is_croppable,
    "sliding": lambda cache: cache.is_sliding,
    "linear": lambda cache: cache.is_linear,
    "compileable": lambda cache: cache.is_compileable,
    "offloading": lambda cache: cache.offloading,
    "layers": lambda cache: [[getattr(layer, name) for name in ("is_sliding",)] for layer in cache.layers],
    "device": lambda cache: [getattr(layer, "device", None) for layer in cache.layers],
    "previous state": lambda cache: cache.has_previous_state(),
    "legacy": lambda cache: cache.to_legacy_cache(),
    "leaves of a tree": lambda cache: len(torch.utils._pytree.tree_leaves(cache)),
}


@pytest.mark.parametrize("case", ["plain", "windows", "some windows", "recurrent", "both"])
@pytest.mark.parametrize("answer", ANSWERS)
def test_answers_alike(case, answer):
    stocks, ours, *_ = filled(case)
    assert outcome(ANSWERS[answer], ours) == outcome(ANSWERS[answer], stocks)


def public(cls, *objects):
    return {name for each in (cls, *objects) for name in dir(each) if not name.startswith("_")}


def test_has_every_public_name_of_stocks_cache_and_of_its_layers():
    # Sliding layers count and record what they drop; ours drop nothing.
    absent = {"activate_past_recording", "cumulative_length", "record_past"}
    assert public(DynamicCache) <= public(RelayCache)
    for case in CASES:
        for layer, stocks in zip(*(each.layers for each in filled(case)[1::-1]), strict=True):
            assert (
                public(type(stocks), stocks) - public(type(layer), layer, *vars(layer)) - {"device", "dtype"} <= absent
            )
            assert hasattr(layer, "device") >= hasattr(stocks, "device")
            assert not hasattr(stocks, "dtype") or layer.dtype is stocks.dtype


ROWS = {
    "reorder": lambda cache: cache.reorder_cache(torch.tensor([2, 2, 0, 1])),
    "select": lambda cache: cache.batch_select_indices(torch.tensor([3, 1])),
    "select by a mask": lambda cache: cache.batch_select_indices(torch.tensor([True, False, False, True])),
    "repeat": lambda cache: cache.batch_repeat_interleave(2),
}


@pytest.mark.parametrize("touched", [False, True])
@pytest.mark.parametrize("change", ROWS)
@pytest.mark.parametrize("case", [case for case in ITERABLE if case not in ("beams", "both")])
def test_rows_change_alike(case, change, touched):
    stocks, ours, _, mask = filled(case)
    held = DynamicCache()
    held.update(mask[:, None, :, None], mask[:, None, :, None], 0)
    if touched:
        list(ours)
    for cache in (stocks, ours, held):
        ROWS[change](cache)
    assert_same_rows(ours, stocks, held.layers[0].keys[:, 0, :, 0])
    assert not ours.is_joined


@pytest.mark.parametrize("tokens", [0, 2, 12, 13, 30, 36, 38, 50])
@pytest.mark.parametrize("case", ["plain", "levels", "latents"])
def test_crop_goes_into_the_prefix_as_well(case, tokens):
    stocks, ours, _, mask = filled(case)
    for cache in (stocks, ours):
        cache.crop(-tokens)
    assert_same_rows(ours, stocks, mask[:, : max(mask.shape[1] - tokens, 0)])
    assert ours.get_seq_length() == stocks.get_seq_length()
    assert ours.is_joined == (tokens > 12)  # of one row's own tokens one is the prompt's, and eleven are new


@pytest.mark.parametrize("touched", [False, True])
@pytest.mark.parametrize(("tokens", "reason"), [(9, CONTINUED), (25, JOINED)])
@pytest.mark.parametrize("case", ["plain", "levels", "windows", "some windows"])
def test_a_cropped_cache_is_continued_alike(case, tokens, reason, touched):
    """Compared with the text put through again, because stock can't crop a window that is full."""
    stock_model, model = pair(CASES[case][0])
    _, ours, sequences, mask = filled(case)
    if touched:
        list(ours)
    ours.crop(-tokens)
    left = ours.get_seq_length() + 1
    got = more(model, ours, sequences[:, :left], mask[:, :left])
    assert model.relay.last.reason == reason, model.relay.last
    expected = more(stock_model, DynamicCache(config=stock_model.config), sequences[:, :left], mask[:, :left])
    assert torch.equal(got.sequences, expected.sequences)


@pytest.mark.parametrize("case", ["recurrent", "both"])
def test_a_cache_of_states_can_not_be_cropped_alike(case):
    stocks, ours, *_ = filled(case)
    assert (
        outcome(lambda cache: cache.crop(-30), ours) is outcome(lambda cache: cache.crop(-30), stocks) is RuntimeError
    )


def saved(cache, how):
    if how == "torch.save":
        file = io.BytesIO()
        torch.save(cache, file)
        return file.getvalue(), torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    written = pickle.dumps(cache)
    return written, pickle.loads(written)


@pytest.mark.parametrize("how", ["torch.save", "pickle"])
@pytest.mark.parametrize("case", [case for case in CASES if case != "beams"])
def test_a_file_holds_what_is_filled_and_goes_on(case, how):
    stocks, ours, sequences, mask = filled(case)
    written, loaded = saved(ours, how)
    around = 700 * sum(1 for _ in tensors_of(ours)) + 20_000  # names, shapes, the configuration
    assert ours.nbytes() < len(written) < ours.nbytes() + around
    assert [layer.capacity for layer in loaded.kv_layers.values()] == [
        layer.own_length for layer in ours.kv_layers.values()
    ]
    if case != "recurrent":
        assert_same_rows(loaded, stocks, mask)
        assert_same_rows(loaded.to_dynamic(), stocks, mask)
    assert_same_turn(case, loaded, stocks, sequences, mask, CONTINUED)


def tensors_of(cache):
    for layer in cache.kv_layers.values():
        yield from layer.own()
        for part in layer.shared:
            yield from part.tensors()


def test_a_file_has_no_room_for_tokens_to_come_and_nothing_of_a_longer_kept_prefix():
    model = relay_hf.patch_model(tiny_model("llama"), policy="always")
    inputs = prompts(300, (3, 5))
    model.relay.warm(inputs["input_ids"][1, :300])
    short = {name: torch.cat([part[1:, :40]] * 2) for name, part in inputs.items()}
    short["input_ids"][:, -1] = torch.tensor([5, 6])
    cache = cache_of(
        generate(model, short, max_new_tokens=400, min_new_tokens=0, max_time=0, return_dict_in_generate=True)
    )
    assert cache.layers[0].shared[0].segment.key.untyped_storage().nbytes() > 200 * 2 * 8 * 4
    assert (cache.nbytes(), cache.nbytes_reserved()) == (model.relay.last.kv_bytes, model.relay.last.kv_bytes_reserved)
    assert cache.nbytes_reserved() > 4 * cache.nbytes()
    for how in ("torch.save", "pickle"):
        assert len(saved(cache, how)[0]) < cache.nbytes() + 20_000


@pytest.mark.parametrize("case", CASES)
def test_a_copy_shares_segments_and_goes_its_own_way(case):
    stocks, ours, *_ = filled(case)
    copied = copy.deepcopy(ours)
    for index, layer in ours.kv_layers.items():
        assert all(one is other for one, other in zip(copied.layers[index].shared, layer.shared, strict=True))
        before, at = layer.keys.clone(), stocks.layers[index].keys.shape
        copied.layers[index].keys.zero_()
        assert torch.equal(layer.keys, before)
        assert before.shape == at
    copied.take_over()
    assert (copied.is_joined, ours.is_joined) == (True, False)


@pytest.mark.parametrize("case", ["plain", "beams", "levels", "windows"])
def test_replicas_are_gathered_alike(case):
    """torch.nn.parallel calls the class of the first cache on what iterating over all of them gives."""

    def gathered(cache):
        def gather(parts):
            if isinstance(parts[0], torch.Tensor) and parts[0].dim():
                return torch.cat(parts)
            return tuple(map(gather, zip(*parts, strict=True))) if isinstance(parts[0], tuple) else parts[0]

        return type(cache)(map(gather, zip(cache, copy.deepcopy(cache), strict=True)))

    stocks, ours, _, mask = filled(case)
    assert_same_rows(gathered(ours), gathered(stocks), torch.cat([mask, mask]))
    assert type(gathered(ours)) is DynamicCache
    assert_same_rows(DynamicCache(ddp_cache_data=ours), stocks, mask)


@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 2}, {"prefill_chunk_size": 4}], ids=["greedy", "beams", "chunks"]
)
def test_a_call_joins_nothing(options, monkeypatch):
    """What a caller may read costs no step of a call anything."""
    joins, joined = [], RelayLayer.joined
    monkeypatch.setattr(RelayLayer, "joined", lambda layer, part, *own: joins.append(part) or joined(layer, part, *own))
    model = pair("llama")[1]
    cache = cache_of(generate(model, FLAT, return_dict_in_generate=True, **options))
    assert (model.relay.last.relayed, joins) == (True, [])
    assert cache.layers[1].keys is not None
    assert joins == [0]


def test_a_cache_of_states_alone_is_never_compiled_for():
    """generate() compiles for any cache of which all layers are compileable, unless its type is DynamicCache itself."""
    model = relay_hf.patch_model(tiny_model("mamba"), policy="always")
    out = generate(model, FLAT, return_dict_in_generate=True)
    cache = next(value for value in out.values() if isinstance(value, RelayCache))
    assert DynamicCache(config=model.config).is_compileable
    assert not cache.is_compileable


def test_an_empty_layer_shows_nothing():
    cache = RelayCache(pair("mistral")[1].config)
    theirs = DynamicCache(config=pair("mistral")[1].config)
    assert [layer[:2] for layer in cache] == [layer[:2] for layer in theirs] == [(None, None)] * len(theirs)
    cache.crop(-3)
    assert cache.get_seq_length() == 0
    assert not hasattr(cache.layers[0], "device")


def test_every_kind_of_layer_turns_into_the_one_that_it_replaced():
    for case in CASES:
        stocks, ours, *_ = filled(case)
        assert [type(layer) for layer in ours.to_dynamic().layers] == [type(layer) for layer in stocks.layers]
    kinds = (*KV_LAYERS, *STATE_LAYERS, *BOTH_LAYERS)
    assert all(issubclass(kind, (cache_utils.DynamicLayer, cache_utils.LinearAttentionLayer)) for kind in kinds)


def test_offload_and_prefetch_do_nothing_where_all_is_on_the_host():
    stocks, ours, sequences, mask = filled("plain")
    for cache in (stocks, ours):
        for layer in cache.layers:
            layer.offload()
            layer.prefetch()
    assert all(isinstance(layer, RelayLayer) for layer in ours.layers)
    assert_same_turn("plain", ours, stocks, sequences, mask, CONTINUED)


def without_mask(model, cache, sequences):
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "eos_token_id": None, "return_dict_in_generate": True}
    return generate(
        model, {"input_ids": torch.nn.functional.pad(sequences, (0, 3), value=7)}, **{CACHE: cache}, **options
    )


@pytest.mark.parametrize("change", ["select", "repeat"])
def test_rows_that_are_left_without_padding_need_no_mask(change):
    stocks, ours, sequences, _ = filled("plain")
    whole = torch.tensor([1])  # the longest prompt
    for cache in (stocks, ours):
        cache.batch_select_indices(whole)
        if change == "repeat":
            cache.batch_repeat_interleave(2)
    assert (ours.rows.own_start, ours.rows.padded) == (None, False)
    sequences = sequences[whole].repeat(len(ours.layers[0].keys), 1)
    expected, got = (without_mask(m, c, sequences) for m, c in zip(pair("llama"), (stocks, ours), strict=True))
    assert torch.equal(got.sequences, expected.sequences)
    assert pair("llama")[1].relay.last.reason == CONTINUED, pair("llama")[1].relay.last
    assert_same_rows(ours, stocks, torch.ones(len(sequences), stocks.get_seq_length()))


def test_rows_whose_shared_lengths_are_equal_after_a_selection_have_one():
    ours = filled("levels")[1]
    assert isinstance(ours.rows.shared_length, tuple)
    ours.batch_select_indices(torch.tensor([0]))
    assert isinstance(ours.rows.shared_length, int)
