"""A model that code of the caller's changes in the middle of a call: nothing is kept of what came after."""

import copy
from dataclasses import replace

import pytest
import torch
from transformers import LogitsProcessor, TextStreamer
from transformers.models.llama.modeling_llama import LlamaMLP

import relay_hf
from relay_hf.generation.facts import CallArguments
from relay_hf.testing import prompts
from tests.support.generating import generate
from tests.support.tiny_models import tiny_model

from .common import logits, reusing
from .mutations import layer

ONE = prompts(30, (5,))
PROMPT = 35
STEPS = 12


def hooked(model):
    handle = layer(model).mlp.register_forward_hook(lambda module, inputs, output: output * 0.5)
    return handle.remove


def another_module(model):
    inner, layer(model).mlp = layer(model).mlp, torch.nn.Identity().eval()
    return lambda: setattr(layer(model), "mlp", inner)


def another_forward(model):
    layer(model).mlp.forward = torch.zeros_like
    return lambda: delattr(layer(model).mlp, "forward")


def another_setting(model):
    attention, scaling = layer(model).self_attn, layer(model).self_attn.scaling
    attention.scaling = 5.0
    return lambda: setattr(attention, "scaling", scaling)


def another_weight(model):
    weight = layer(model).self_attn.k_proj.weight
    weight.data.neg_()
    return weight.data.neg_


def another_buffer(model):
    """That stays as it is: as if the model's own forward had rewritten it."""
    model.get_decoder().rotary_emb.inv_freq.mul_(0.5)
    return lambda: None


CHANGES = [hooked, another_module, another_forward, another_setting, another_weight, another_buffer]


class Changing(LogitsProcessor):
    """Changes the model behind the second token, and back behind the last but one."""

    def __init__(self, model, change):
        self.model, self.change, self.step, self.undo = model, change, 0, None

    def __call__(self, input_ids, scores):
        self.step += 1
        if self.step == 2:
            self.undo = self.change(self.model)
        if self.step == STEPS - 1:
            self.undo()
        return scores


def turns(model, change):
    """A call of one row in which the model changes, and the logits of the next turn."""
    with torch.no_grad():
        said = generate(model, ONE, logits_processor=[Changing(model, change)], max_new_tokens=STEPS)
    ids = torch.cat([said, torch.arange(5, 9)[None]], dim=1)
    return said, logits(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})


@pytest.mark.parametrize("change", CHANGES)
def test_only_the_prompt_is_kept(change, monkeypatch):
    stock = tiny_model("llama")
    ours, unguarded = (relay_hf.patch_model(copy.deepcopy(stock), policy="always") for _ in range(2))
    said, expected = turns(stock, change)
    found, right = turns(ours, change)
    assert torch.equal(found, said)
    torch.testing.assert_close(right, expected)
    stays = change is another_buffer
    assert ours.relay.last.prefix_tokens_reused == (0 if stays else PROMPT)
    read = CallArguments.of
    monkeypatch.setattr(CallArguments, "of", lambda *given: replace(read(*given), callers_code=False))
    _, wrong = turns(unguarded, change)
    assert unguarded.relay.last.prefix_tokens_reused == PROMPT + STEPS - 1
    assert (wrong - right).abs().max() > 1e-3


def test_a_buffer_that_was_changed_during_a_call_is_looked_at_in_the_next():
    """It is not taken for one that the model's own forward rewrites, which says nothing."""
    stock = tiny_model("llama")
    ours = relay_hf.patch_model(copy.deepcopy(stock), policy="always")
    turns(ours, another_buffer)
    turns(stock, another_buffer)
    for factor in (1.0, 3.0):
        for model in (ours, stock):
            model.get_decoder().rotary_emb.inv_freq.mul_(factor)
        assert torch.equal(generate(ours, ONE), generate(stock, ONE))
    assert ours.relay.last.prefix_tokens_reused == 0


class Determined(LlamaMLP):
    """As another thread would, in the middle of a forward."""

    def forward(self, x):
        torch.use_deterministic_algorithms(True, warn_only=True)
        return super().forward(x)


class Decoding:
    """A tokenizer that changes how PyTorch computes, behind a streamer of Transformers'."""

    def decode(self, tokens, **kwargs):
        torch.use_deterministic_algorithms(True, warn_only=True)
        return "a" * len(tokens)


@pytest.mark.parametrize("where", ["a prefill", "a step"])
def test_nothing_is_kept_of_which_a_part_was_computed_under_another_setting(where):
    ours, given = relay_hf.patch_model(tiny_model("llama"), policy="always", trust=["*"]), {}
    inputs = ONE
    if where == "a prefill":
        layer(ours).mlp.__class__, inputs = Determined, prompts(30, (5, 3))
    else:
        given = {"streamer": TextStreamer(Decoding(), skip_prompt=True)}
    try:
        generate(ours, inputs, **given)
        assert (ours.relay.last.relayed, ours.relay.prefixes) == (True, ())
        generate(ours, inputs, **given)
        assert len(ours.relay.prefixes) == 1, "all of it was computed under one setting"
    finally:
        torch.use_deterministic_algorithms(False)


class Shouting(TextStreamer):
    pass


class Letters:
    """A tokenizer, as far as streamers ask."""

    def decode(self, tokens, **kwargs):
        return "a" * len(tokens)


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        ({}, PROMPT + STEPS - 1),
        ({"repetition_penalty": 1.2, "do_sample": True}, PROMPT + STEPS - 1),
        ({"streamer": TextStreamer(Letters())}, PROMPT + STEPS - 1),
        ({"streamer": Shouting(Letters())}, PROMPT),
        ({"stopping_criteria": [lambda ids, scores: torch.zeros(1, dtype=torch.bool)]}, PROMPT),
        ({"prefix_allowed_tokens_fn": lambda row, ids: list(range(5, 50))}, PROMPT),
    ],
    ids=["nothing", "Transformers' own", "its streamer", "a streamer made of it", "criterion", "allowed tokens"],
)
def test_an_answer_is_kept_where_no_code_of_the_callers_runs(arguments, kept):
    ours = relay_hf.patch_model(tiny_model("llama"), policy="always")
    generate(ours, ONE, max_new_tokens=STEPS, **arguments)
    assert max(len(prefix.ids) for prefix in ours.relay.prefixes) == kept


class Remembering(torch.nn.Module):
    """Notes what it has seen, in all ways there are; what it computes does not depend on that."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.last, self.seen, self.shapes = inner, None, {}, []
        self.register_buffer("count", torch.zeros(40))

    def forward(self, hidden):
        self.count += 1
        self.last = hidden.detach().clone()
        self.seen[len(self.seen)] = self.last
        self.shapes.append(hidden.shape)
        return self.inner(hidden)


def test_what_the_models_own_forward_rewrites_says_nothing():
    stock = tiny_model("llama")
    layer(stock).mlp = Remembering(layer(stock).mlp).eval()
    ours = reusing(stock)
    layer(ours).mlp.inner.gate_proj.weight.data.mul_(2)
    generate(ours, ONE)
    assert ours.relay.last.prefix_tokens_reused == 0
