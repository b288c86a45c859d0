"""Decoding strategies: how the next tokens are chosen, and how the prompt is prefilled."""

from functools import partial

import pytest

from .compare import PREFIX, assert_relayed, assert_same, assert_same_error, generate, keep_prefix, seeded

OFTEN_EOS = list(range(3, 50))  # so frequent that beams finish early

RELAYED = {
    "greedy": ({}, 4),
    "sampling": ({"do_sample": True}, 4),
    "return sequences": ({"do_sample": True, "num_return_sequences": 3}, 12),
    "beams": ({"num_beams": 3}, 12),
    "beam sampling": ({"num_beams": 2, "do_sample": True}, 8),
    "beams, return sequences": ({"num_beams": 3, "num_return_sequences": 2}, 12),
    "beams until none can win": ({"num_beams": 3, "early_stopping": "never", "eos_token_id": OFTEN_EOS}, 12),
    "beams, first finished": ({"num_beams": 3, "early_stopping": True, "eos_token_id": OFTEN_EOS}, 12),
    "long beams": ({"num_beams": 3, "length_penalty": 2.0, "eos_token_id": OFTEN_EOS}, 12),
    "short beams": ({"num_beams": 3, "length_penalty": -0.5, "eos_token_id": OFTEN_EOS}, 12),
    "chunks of one": ({"prefill_chunk_size": 1}, 4),
    "chunks of four": ({"prefill_chunk_size": 4}, 4),
    "a chunk wider than the prompt": ({"prefill_chunk_size": 100}, 4),
    "chunks, beams": ({"prefill_chunk_size": 3, "num_beams": 2}, 8),
}

RAISING = {
    "greedy return sequences": ({"num_return_sequences": 3}, "Greedy methods"),
    "contrastive search": ({"penalty_alpha": 0.6, "top_k": 4}, "Contrastive Search requires `trust_remote_code"),
    "group beam search": (
        {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
        "Group Beam Search requires `trust_remote_code",
    ),
    "constrained beam search": (
        {"num_beams": 2, "force_words_ids": [[5]]},
        "Constrained Beam Search requires `trust_remote_code",
    ),
    "dola": ({"dola_layers": "low"}, "Dola Generation requires `trust_remote_code"),
}


@pytest.mark.parametrize("mode", RELAYED)
def test_a_strategy_is_relayed(pair, mode):
    options, rows = RELAYED[mode]
    assert_relayed(pair, lambda model: generate(model, **options), rows=rows)


def test_eager_attention_is_relayed(eager_pair):
    assert_relayed(eager_pair, lambda model: generate(model, num_beams=2), rows=8)


@pytest.mark.parametrize("mode", RAISING)
def test_what_stock_refuses_is_refused_alike(pair, mode):
    options, message = RAISING[mode]
    assert_same_error(pair, lambda model: generate(model, **options), message)


def test_strategies_take_turns_on_one_kept_prefix(pair):
    ours = pair[1]
    ours.relay.clear()
    keep_prefix(ours)
    for mode in ("beams", "chunks of four", "return sequences", "greedy"):
        options, rows = RELAYED[mode]
        expected, got = [seeded(partial(generate, **options), model) for model in pair]
        assert_same(got, expected)
        assert (ours.relay.last.rows, ours.relay.last.prefix_tokens_reused) == (rows, PREFIX)
    assert len(ours.relay.prefixes) == 1
