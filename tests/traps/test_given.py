"""What a caller gives or asks for beside a prompt: embeddings, a cache, attentions; and an encoder's output."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM, DynamicCache

from relay_hf.generation import eligibility, eligible_models
from relay_hf.testing import PAD, VOCABULARY, prompts
from tests.models.trial import TOLERANCE
from tests.support.generating import CACHE
from tests.support.tiny_models import tiny_model

from .compare import (
    LEAST_WRONG,
    all_inputs_known,
    assert_untouched,
    assert_wrong,
    beside_a_patched_copy,
    error,
    pair,
    run,
)

EQUAL = prompts(20, (5, 5, 5))
TOKEN_TYPES = (torch.arange(25) > 17).long().repeat(3, 1)
EMBEDDINGS = tiny_model("llama").get_input_embeddings()(prompts(20, (5, 5, 5), seed=3)["input_ids"]).detach()
# A model that takes it, and the input: other embeddings than the ids', other types than all 0.
INPUTS = {
    "inputs_embeds": ("llama", EMBEDDINGS),
    "token_type_ids": ("gpt2", TOKEN_TYPES),
}


@pytest.mark.parametrize("name", INPUTS)
def test_an_input_beside_the_ids_is_untouched(name):
    model_type, value = INPUTS[name]
    assert_untouched(pair(model_type), EQUAL, f"an input that is not relayed, {name!r}", **{name: value})


@pytest.mark.parametrize("name", INPUTS)
def test_an_input_beside_the_ids_needs_the_guard(name, monkeypatch):
    all_inputs_known(monkeypatch)
    model_type, value = INPUTS[name]
    assert_wrong(pair(model_type), EQUAL, **{name: value})


def no_guard(monkeypatch):
    monkeypatch.setattr(eligibility, "call_refusal", lambda *args: None)


def on_a_cache_of_other_tokens(models):
    """As a soft prompt would fill it: what is in it is not what the ids say."""
    others = prompts(20, (5, 5, 5), seed=3)["input_ids"][:, :18]
    outputs = []
    for model in models:
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            model(others, **{CACHE: cache})
        outputs.append(run(model, EQUAL, **{CACHE: cache}))
    return error(*outputs)


def test_a_cache_of_the_caller_is_untouched():
    models = pair("llama")
    assert on_a_cache_of_other_tokens(models) <= TOLERANCE
    assert models[1].relay.last.reason == f"{CACHE} was given by the caller"


def test_a_cache_of_the_caller_needs_the_guard(monkeypatch):
    no_guard(monkeypatch)
    models = pair("llama")
    assert on_a_cache_of_other_tokens(models) > LEAST_WRONG
    assert models[1].relay.last.relayed


WANTED = ["attentions", "hidden_states"]


def first_forward(models, wanted):
    return tuple(run(model, EQUAL, **{f"output_{wanted}": True})[wanted][0] for model in models)


@pytest.mark.parametrize("wanted", WANTED)
def test_what_is_asked_of_every_prompt_token_is_untouched(wanted):
    models = pair("llama", attn_implementation="eager")
    expected, got = first_forward(models, wanted)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    assert models[1].relay.last.reason == f"output_{wanted}=True needs every prompt token in every row"


@pytest.mark.parametrize("wanted", WANTED)
def test_what_is_asked_of_every_prompt_token_needs_the_guard(wanted, monkeypatch):
    no_guard(monkeypatch)
    models = pair("llama", attn_implementation="eager")
    expected, got = first_forward(models, wanted)
    assert models[1].relay.last.relayed
    assert [part.shape for part in got] != [part.shape for part in expected]


def bart():
    sizes = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    sizes |= {"encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "d_model": 32, "vocab_size": VOCABULARY, "init_std": 0.2}
    tokens = {"pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    config = AutoConfig.for_model("bart", **sizes, **tokens, forced_eos_token_id=None)
    torch.manual_seed(0)
    return beside_a_patched_copy(AutoModelForSeq2SeqLM.from_config(config).eval())


def test_an_encoder_and_a_decoder_have_four_guards(monkeypatch):
    """The decoder's prompt is shared, what the encoder read is not. Each guard stands behind the one before."""
    models = bart()
    decoded = {"decoder_input_ids": prompts(20, (5, 5, 5), seed=5)["input_ids"]}
    assert_untouched(models, EQUAL, "encoder-decoder models are not relayed", **decoded)
    monkeypatch.setattr(eligible_models, "model_refusal", lambda *args: None)
    assert_untouched(models, EQUAL, "an input that is not relayed, 'encoder_outputs'", **decoded)
    all_inputs_known(monkeypatch)
    assert_untouched(models, EQUAL, "generate() uses a EncoderDecoderCache here", **decoded)
    no_guard(monkeypatch)
    assert_untouched(
        models, EQUAL, "a relayed prefill raised ValueError: attention_mask must be as large as input_ids", **decoded
    )
