"""Keys and values that are read while a RelayCache moves on, by another thread or by hand: that is no change."""

import sys
import threading

import pytest
import torch

import relay_hf
from relay_hf.cache_utils import RelayCache
from tests.support.generating import CACHE, generate

from .returned import FLAT, assert_same_rows, assert_same_turn, filled, pair
from .test_changed import CONTINUED, EDITS, JOINED, PLACE, kv_layers


@pytest.mark.parametrize("model_type", ["llama", "mistral"])
@pytest.mark.parametrize("beams", [1, 2])
def test_a_thread_that_reads_while_a_call_runs_changes_nothing(model_type, beams):
    stock, model = pair(model_type)
    options = {"max_new_tokens": 40, "min_new_tokens": 40, "num_beams": beams, "eos_token_id": None}
    expected = generate(stock, FLAT, **options)
    cache, over, failed = RelayCache(model.config), threading.Event(), []

    def read():
        while not over.is_set():
            try:
                list(cache)
            except Exception as error:
                failed.append(error)

    reader = threading.Thread(target=read)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    reader.start()
    try:
        got = generate(model, FLAT, **{CACHE: cache}, **options)
    finally:
        over.set()
        reader.join()
        sys.setswitchinterval(interval)
    assert torch.equal(got, expected)
    alike = {1: "the rows start alike", 2: "the rows start alike, and some go on alike"}
    assert model.relay.last.reason == alike[beams], model.relay.last
    assert not failed


def test_rows_that_were_shown_before_a_column_was_stored_are_shown_anew_and_are_no_change():
    """As another thread leaves them, which has read a layer just before a forward stored its column."""
    stocks, ours, sequences, mask = filled("windows")
    for layer in ours.layers:
        own_length = layer.own_length
        layer.own_length -= 1
        assert layer.keys is layer.keys
        layer.own_length = own_length
    assert_same_rows(ours, stocks, mask)
    assert_same_turn("windows", ours, stocks, sequences, mask, CONTINUED)


def test_a_change_of_rows_that_the_layer_has_left_behind_is_an_error():
    _, ours, *_ = filled("plain")
    layer = ours.layers[0]
    layer.own_length -= 1
    layer.keys[PLACE] = 0
    layer.own_length += 1
    with pytest.raises(relay_hf.RelayError, match="were changed while a forward runs"):
        ours.take_over()


def test_not_a_number_is_no_change():
    _, ours, *_ = filled("plain")
    ours.layers[0].own()[0][0, 0, -1] = float("nan")
    list(ours)
    ours.take_over()
    assert not ours.is_joined


@pytest.mark.parametrize("edit", ["nothing", "in_place"])
@pytest.mark.parametrize("case", ["plain", "windows", "both"])
def test_a_column_stored_by_hand_counts_after_a_read(case, edit):
    stocks, ours, sequences, mask = filled(case)
    for cache in (stocks, ours):
        list(cache)
        EDITS.get(edit, list)(cache)
        for layer in kv_layers(cache):
            new = [part[:, :, :1].clone().fill_(0.5) for part in (layer.keys, layer.values)]
            layer.update(*new)
    sequences, mask = (torch.nn.functional.pad(part, (0, 1), value=1) for part in (sequences, mask))
    assert_same_rows(ours, stocks, mask)
    if case != "both":  # its states lack the column
        assert_same_turn(case, ours, stocks, sequences, mask, JOINED)
