"""What a relayed prefill has shown of a model is known before the next call computes anything, until it changes."""

import copy
import logging

import pytest
import torch
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention

import relay_hf
from relay_hf.testing import prompts
from tests.support.generating import CACHE, cache_of, embedded, generate
from tests.support.tiny_models import tiny_model

PADDED = prompts(20, (3, 7, 2, 5))
UNPADDED = prompts(20, (5, 5, 5))
COLUMNS = "the model counts columns, and rows are padded"


class LeavesOutPositions(LlamaForCausalLM):
    """Like EXAONE 4.5, HyperCLOVA X Vision and Kosmos-2.5: its forward gets no `position_ids`."""

    def prepare_inputs_for_generation(self, input_ids, attention_mask=None, **kwargs):
        inputs = super().prepare_inputs_for_generation(input_ids, attention_mask=attention_mask, **kwargs)
        inputs["position_ids"] = None
        return inputs


class LeavesThemOutLater(LlamaForCausalLM):
    """The same, but only where the cache holds something: that shows in the rows' own prefill, behind a prefix."""

    def prepare_inputs_for_generation(self, input_ids, attention_mask=None, **kwargs):
        inputs = super().prepare_inputs_for_generation(input_ids, attention_mask=attention_mask, **kwargs)
        if kwargs[CACHE].get_seq_length() > 0:
            inputs["position_ids"] = None
        return inputs


class Aside(LlamaAttention):
    """Attention that is not attention."""

    def forward(self, hidden_states, *args, **kwargs):
        return hidden_states, None


class PassesBy(LlamaForCausalLM):
    """A model whose second layer passes the attention interface by."""

    def __init__(self, config):
        super().__init__(config)
        self.model.layers[1].self_attn = Aside(config, 1)


def pair(kind, **options):
    like = tiny_model("llama")
    stock = kind(copy.deepcopy(like.config)).eval()
    stock.load_state_dict(like.state_dict())
    return stock, relay_hf.patch_model(copy.deepcopy(stock), policy="always", trust=["*"], **options)


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def in_levels(width=40):
    ids = torch.randint(3, 97, (4, width), generator=torch.Generator().manual_seed(0))
    ids[:, :20] = ids[0, :20]
    ids[:2, :30], ids[2:, :38] = ids[0, :30].clone(), ids[2, :38].clone()
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def with_a_hole():
    inputs = {name: value.clone() for name, value in UNPADDED.items()}
    inputs["attention_mask"][1, -2] = 0
    return inputs


ONE = {name: value[:1] for name, value in UNPADDED.items()}
RELAYED = {
    "greedy": (UNPADDED, {}),
    "sampled": (UNPADDED, {"do_sample": True}),
    "samples of a prompt": (ONE, {"do_sample": True, "num_return_sequences": 3}),
    "beams": (UNPADDED, {"num_beams": 2}),
    "levels": (in_levels(), {}),
    "a hole": (with_a_hole(), {}),
}
REFUSED = {
    "greedy": {},
    "sampled": {"do_sample": True},
    "samples": {"do_sample": True, "num_return_sequences": 2},
    "beams": {"num_beams": 2},
    "a whole output": {"return_dict_in_generate": True},
}


@pytest.mark.parametrize("what", REFUSED)
def test_that_a_type_leaves_out_positions_is_known_before_its_first_call_computes_anything(what, caplog):
    stock, ours = pair(LeavesOutPositions)
    assert ours.relay.explain(**PADDED).reason == COLUMNS
    theirs, mine = embedded(stock), embedded(ours)
    for _ in range(2):
        tokens = []
        for model in (stock, ours):
            torch.manual_seed(0)
            outputs = generate(model, PADDED, **REFUSED[what])
            tokens.append(outputs if isinstance(outputs, torch.Tensor) else outputs.sequences)
        assert torch.equal(*tokens)
        assert (ours.relay.last.relayed, ours.relay.last.reason) == (False, COLUMNS)
        assert mine == theirs
    assert not warnings_of(caplog)  # the padded rows are the reason: another call of the model is relayed


@pytest.mark.parametrize("what", RELAYED)
def test_rows_without_padding_of_such_a_type_are_relayed(what):
    stock, ours = pair(LeavesOutPositions)
    inputs, options = RELAYED[what]
    generate(ours, PADDED)
    torch.manual_seed(0)
    expected = generate(stock, inputs, **options)
    torch.manual_seed(0)
    assert torch.equal(generate(ours, inputs, **options), expected)
    assert ours.relay.last.relayed, ours.relay.last
    assert ours.relay.last.levels == 1  # runs of a second level would begin in different columns


def test_a_cache_by_hand_takes_a_refused_call_of_such_a_type():
    stock, ours = pair(LeavesOutPositions)
    cache = relay_hf.RelayCache(ours.config)
    outputs = generate(ours, PADDED, **{CACHE: cache}, return_dict_in_generate=True)
    assert torch.equal(outputs.sequences, generate(stock, PADDED))
    assert (ours.relay.last.reason, cache_of(outputs)) == (COLUMNS, cache)
    assert cache.get_seq_length() == outputs.sequences.shape[1] - 1


def test_what_the_prefill_shows_of_positions_is_computed_in_vain_once():
    stock, ours = pair(LeavesThemOutLater, max_store_bytes=0)  # no later call finds the prefix of the first one
    theirs, mine = embedded(stock), embedded(ours)

    def call(inputs):
        for counts in (theirs, mine):
            counts.clear()
        assert torch.equal(generate(ours, inputs), generate(stock, inputs))

    call(PADDED)
    assert (ours.relay.last.reason, sum(mine) - sum(theirs)) == (COLUMNS, 20)
    for _ in range(2):
        call(PADDED)
        assert (ours.relay.last.reason, mine) == (COLUMNS, theirs)
    call(UNPADDED)
    assert ours.relay.last.relayed, ours.relay.last
    ours.relay.clear()
    call(PADDED)
    assert (ours.relay.last.reason, sum(mine) - sum(theirs)) == (COLUMNS, 20)


def test_the_models_own_cache_is_not_touched_by_the_question():
    """A type may write to what it is given when it prepares a forward."""
    _, ours = pair(LeavesOutPositions)
    asked = []
    prepare = LeavesOutPositions.prepare_inputs_for_generation

    class Notes(LeavesOutPositions):
        def prepare_inputs_for_generation(self, input_ids, attention_mask=None, **kwargs):
            asked.append((kwargs["next_sequence_length"], kwargs.get(CACHE).get_seq_length()))
            return prepare(self, input_ids, attention_mask=attention_mask, **kwargs)

    ours.__class__ = Notes
    generate(ours, PADDED, max_new_tokens=2, min_new_tokens=2)
    assert asked == [(27, 0), (27, 0), (1, 27)]  # the question, stock's prefill, and stock's step


def with_dropout(model):
    model.train()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.3


def without_dropout(model):
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.0


@pytest.mark.parametrize("change", [lambda model: model.eval(), without_dropout], ids=["mode", "setting"])
def test_attention_dropout_is_found_once_and_forgotten_with_a_change(change, caplog):
    stock, ours = pair(LlamaForCausalLM)
    with_dropout(stock), with_dropout(ours)
    theirs, mine = embedded(stock), embedded(ours)
    for first in (True, False, False):
        tokens = []
        for model, counts in ((stock, theirs), (ours, mine)):
            counts.clear()
            torch.manual_seed(0)
            tokens.append(generate(model, PADDED))
        assert torch.equal(*tokens)
        assert ours.relay.last.reason == "attention dropout is active (0.3)"
        assert (mine != theirs) == first
    (said,) = warnings_of(caplog)
    assert "attention dropout" in said
    for model in (stock, ours):
        change(model)
    assert torch.equal(generate(ours, PADDED), generate(stock, PADDED))
    assert ours.relay.last.relayed, ours.relay.last


def replace_a_module(model):
    model.model.layers[1].self_attn = LlamaAttention(model.config, 1).eval()
    model.model.layers[1].self_attn.load_state_dict(tiny_model("llama").model.layers[1].self_attn.state_dict())


def change_its_code(model):
    model.model.layers[1].self_attn.__class__ = LlamaAttention


@pytest.mark.parametrize("change", [replace_a_module, change_its_code])
def test_an_unfit_model_is_tried_anew_once_it_is_changed(change, caplog):
    stock, ours = pair(PassesBy)
    for _ in range(2):
        assert torch.equal(generate(ours, PADDED), generate(stock, PADDED))
        assert "layers [1] did not" in ours.relay.last.reason
    assert len(warnings_of(caplog)) == 1
    change(ours)
    assert torch.equal(generate(ours, PADDED), generate(tiny_model("llama"), PADDED))
    assert ours.relay.last.relayed, ours.relay.last


def test_weights_that_are_trained_do_not_have_an_unfit_model_tried_anew():
    """In a trainer they change before each call."""
    _, ours = pair(PassesBy)
    generate(ours, PADDED)
    computed = embedded(ours)
    generate(ours, PADDED)  # the counting is a change of the model
    tried = []
    for _ in range(2):
        with torch.no_grad():
            for parameter in ours.parameters():
                parameter.mul_(0.99)
        computed.clear()
        generate(ours, PADDED)
        tried.append(sum(computed))
    rows, columns = PADDED["input_ids"].shape
    assert tried == [rows * columns + rows * 11] * 2
