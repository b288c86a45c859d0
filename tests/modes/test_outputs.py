"""What generate() returns: every field that can be asked for, with the shapes and names that stock gives it."""

from functools import partial

import pytest
import torch

import relay_hf
from tests.support.generating import CACHE, cache_of

from .compare import INPUTS, assert_relayed, assert_same, assert_untouched, generate, seeded

STRATEGIES = {"greedy": {}, "beams": {"num_beams": 3}}
NEEDS_PROMPT = "needs every prompt token in every row"


@pytest.mark.parametrize(("strategy", "wanted"), [("greedy", "logits"), ("beams", "scores")])
def test_one_field(pair, strategy, wanted):
    options = {**STRATEGIES[strategy], "output_scores": False, "output_logits": False, f"output_{wanted}": True}
    output = assert_relayed(pair, lambda model: generate(model, **options), rows=12 if strategy == "beams" else 4)
    assert {"scores", "logits"} & set(output) == {wanted}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_ids_alone(pair, strategy):
    """Fields that are wanted without the object that would hold them are left out."""
    options = {"return_dict_in_generate": False, **STRATEGIES[strategy]}
    output = assert_relayed(pair, lambda model: generate(model, **options), rows=12 if strategy == "beams" else 4)
    assert isinstance(output, torch.Tensor)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_hidden_states(pair, strategy):
    call = partial(generate, output_hidden_states=True, **STRATEGIES[strategy])
    output = assert_untouched(pair, call, f"output_hidden_states=True {NEEDS_PROMPT}")
    assert len(output.hidden_states[0]) == 1 + pair[0].config.num_hidden_layers


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_attentions(eager_pair, strategy):
    call = partial(generate, output_attentions=True, **STRATEGIES[strategy])
    output = assert_untouched(eager_pair, call, f"output_attentions=True {NEEDS_PROMPT}")
    assert output.attentions[0][0].dim() == 4


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_scores_of_the_chosen_tokens(pair, strategy):
    def call(model):
        output = generate(model, **STRATEGIES[strategy])
        beams = output.get("beam_indices")
        return model.compute_transition_scores(output.sequences, output.scores, beams, normalize_logits=beams is None)

    assert_relayed(pair, call, rows=12 if strategy == "beams" else 4)


def test_an_output_outlives_the_next_call(pair):
    """What was returned is not written to again when the prefix serves another call."""
    ours = pair[1]
    first = seeded(generate, ours)
    before = [first.sequences.clone(), [step.clone() for step in first.logits]]
    held = cache_of(first).to_dynamic()
    generate(ours, do_sample=True)
    assert_same([first.sequences, [*first.logits]], before)
    again = cache_of(first).to_dynamic()
    for one, other in zip(again.layers, held.layers, strict=True):
        assert_same([one.keys, one.values], [other.keys, other.values])


def test_attentions_of_a_forward_by_hand_are_refused_and_not_left_out(eager_pair):
    """Behind a generate() call, on its cache."""
    inputs = {"input_ids": torch.full((4, 1), 5), "attention_mask": None, "output_attentions": True}
    for model in eager_pair:
        cache = cache_of(generate(model, eos_token_id=None))
        missing = cache.get_seq_length() + 1 - INPUTS["attention_mask"].shape[1]
        inputs["attention_mask"] = torch.nn.functional.pad(INPUTS["attention_mask"], (0, missing), value=1)
        if isinstance(cache, relay_hf.RelayCache):
            with torch.no_grad(), pytest.raises(relay_hf.RelayError, match="no weights to return"):
                model(**inputs, **{CACHE: cache})
            cache = cache.to_dynamic()
        with torch.no_grad():
            attentions = model(**inputs, **{CACHE: cache}).attentions
        assert all(weights is not None for weights in attentions)
        assert len(attentions) == model.config.num_hidden_layers
