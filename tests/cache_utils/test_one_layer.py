"""What a caller does to the layers of a returned cache one by one, as some libraries do, is what stock's layers do."""

import pytest
import torch

from .returned import assert_same_rows, assert_same_turn, filled
from .test_changed import JOINED, kv_layers

REVERSED, SOME = torch.tensor([3, 2, 1, 0]), torch.tensor([2, 0])
ROWS = {
    "reordered": (lambda layer: layer.reorder_cache(REVERSED), REVERSED),
    "selected": (lambda layer: layer.batch_select_indices(SOME), SOME),
    "repeated": (lambda layer: layer.batch_repeat_interleave(2), torch.arange(4).repeat_interleave(2)),
}


# Layers with recurrent states can be reordered only, in stock too.
@pytest.mark.parametrize(
    ("case", "change"),
    [
        *((case, change) for case in ("plain", "levels", "some windows", "latents") for change in ROWS),
        ("both", "reordered"),
    ],
)
def test_rows_of_each_layer(case, change):
    stocks, ours, sequences, mask = filled(case)
    apply, rows = ROWS[change]
    for cache in (stocks, ours):
        for layer in cache.layers:
            apply(layer)
    assert_same_rows(ours, stocks, mask[rows])
    assert_same_turn(case, ours, stocks, sequences[rows], mask[rows], JOINED)


@pytest.mark.parametrize("case", ["plain", "levels", "both"])
def test_each_layer_is_reset_or_initialized_again(case):
    for change in (lambda layer: layer.reset(), lambda layer: layer.lazy_initialization(layer.keys, layer.values)):
        stocks, ours, *_ = filled(case)
        for cache in (stocks, ours):
            for layer in kv_layers(cache):
                change(layer)
        assert [layer.get_seq_length() for layer in kv_layers(ours)] == [
            each.get_seq_length() for each in kv_layers(stocks)
        ]


def test_the_mark_of_a_filled_layer_can_be_set():
    stocks, ours, *_ = filled("plain")
    for cache in (stocks, ours):
        for layer in cache.layers:
            layer.is_initialized = False
    assert [layer.is_initialized for layer in ours.layers] == [layer.is_initialized for layer in stocks.layers]


@pytest.mark.parametrize("indices", [[2, 0], (1, 3), [True, False, True, False]], ids=str)
def test_rows_may_be_selected_by_a_list(indices):
    stocks, ours, _, mask = filled("levels")
    chosen = torch.tensor(indices)
    for cache in (stocks, ours):
        cache.batch_select_indices(chosen if cache is stocks else indices)
    assert_same_rows(ours, stocks, mask[chosen])
