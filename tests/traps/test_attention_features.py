"""What attention may have besides queries, keys and values: sinks, softcaps, biases, latents, another layer's keys."""

import pytest

from relay_hf.attention import layer
from relay_hf.attention.context import Observations
from relay_hf.cache_utils import RelayCache, RelayLayer, cache
from relay_hf.model.architectures import ARCHITECTURES, Architecture
from relay_hf.model.upstream import attention
from relay_hf.testing import prompts

from .compare import RECENT, assert_relayed, assert_untouched, assert_wrong, leave_out, pair

INPUTS = prompts(20, (3, 7, 1, 5))
EQUAL = prompts(20, (5, 5, 5))

# A cap of 50, as the second has by default, bends the scores of so small a model by less than rounding does.
FEATURES = {
    "gpt_oss": ("sinks", {}),
    "mimo_v2_flash": ("sinks", {}),
    "gemma2": ("softcap", {}),
    "vaultgemma": ("softcap", {"attn_logit_softcapping": 0.5}),
}


@pytest.mark.parametrize("model_type", FEATURES)
def test_sinks_and_softcaps(model_type):
    assert_relayed(pair(model_type, **FEATURES[model_type][1]), INPUTS)


@pytest.mark.parametrize("model_type", FEATURES)
def test_sinks_and_softcaps_may_not_be_left_out(model_type, monkeypatch):
    feature, sizes = FEATURES[model_type]
    leave_out(monkeypatch, feature)
    assert_wrong(pair(model_type, **sizes), INPUTS)


def test_an_implementation_that_leaves_out_the_softcap_is_untouched(monkeypatch):
    """Older versions of Transformers let Gemma 2 have it, newer ones refuse."""
    if RECENT:
        with pytest.raises(ValueError, match="does not support an attention implementation through"):
            pair("gemma2", attn_implementation="sdpa")
        return
    models = pair("gemma2", attn_implementation="sdpa")
    assert_untouched(models, INPUTS, "sdpa leaves out the softcap or sinks")
    monkeypatch.setattr(layer, "users_implementation", lambda config: "eager")
    assert_wrong(models, INPUTS)


def without_code_of_its_own(monkeypatch):
    """Inkling, whose layers pass a bias to the attention interface, as a type that is not known to have one."""
    monkeypatch.setitem(ARCHITECTURES, "inkling_text", Architecture(recurrent="split"))


def test_a_bias_that_the_operator_does_not_know_is_untouched(monkeypatch):
    assert_relayed(pair("inkling_text"), INPUTS, prefix=19)
    without_code_of_its_own(monkeypatch)
    assert_untouched(pair("inkling_text"), EQUAL, "an argument that the operator does not know, 'position_bias'")


def test_a_bias_that_the_operator_does_not_know_needs_the_guard(monkeypatch):
    without_code_of_its_own(monkeypatch)
    monkeypatch.setattr(attention, "KNOWN_ARGUMENTS", attention.KNOWN_ARGUMENTS | {"position_bias"})
    assert_wrong(pair("inkling_text"), EQUAL)


# ALiBi, with and without rotary embeddings, in attention code of the model's own.
BIASED = {"bloom": {}, "mpt": {}, "falcon": {"alibi": True}}
WITHOUT_ROW = {"bloom": "layers [0, 1] did not", "mpt": "raised AttributeError", "falcon": "raised TypeError"}


@pytest.mark.parametrize("model_type", BIASED)
def test_biases_of_distance(model_type):
    assert_relayed(pair(model_type, **BIASED[model_type]), INPUTS)


@pytest.mark.parametrize("model_type", BIASED)
def test_biases_of_distance_need_their_row(model_type, monkeypatch):
    monkeypatch.delitem(ARCHITECTURES, model_type)
    assert_untouched(pair(model_type, **BIASED[model_type]), EQUAL, WITHOUT_ROW[model_type])


# Latents, expanded for attention, with keys and values of different sizes.
LATENT = ["deepseek_v2", "deepseek_v3", "minicpm3"]


@pytest.mark.parametrize("model_type", LATENT)
def test_latents(model_type):
    assert_relayed(pair(model_type), INPUTS)


@pytest.mark.parametrize("model_type", LATENT)
def test_latents_are_not_what_attention_sees(model_type, monkeypatch):
    freeze = RelayLayer.freeze
    monkeypatch.setattr(RelayLayer, "freeze", lambda self, attended, *how: freeze(self, None, *how))
    assert_untouched(pair(model_type), INPUTS, "a relayed prefill raised RuntimeError: Expected size")


# The last two of four layers attend to keys and values of the others.
REUSING = ["gemma3n_text", "gemma4_text"]


@pytest.mark.parametrize("model_type", REUSING)
def test_layers_that_reuse_keys_and_values(model_type):
    assert_relayed(pair(model_type), INPUTS)


def test_a_layer_must_attend_to_the_segment_of_the_layer_that_it_reuses(monkeypatch):
    """Layers of one kind reuse the last one's before them; here they get the first one's segment."""
    models = pair("gemma3n_text", layer_types=["full_attention"] * 4)
    assert_relayed(models, INPUTS)
    source, reusing = Observations.source, RelayCache(models[1].config).reusing

    def first(self, key, layer_idx):
        return 0 if layer_idx in reusing else source(self, key, layer_idx)

    monkeypatch.setattr(Observations, "source", first)
    assert_wrong(models, INPUTS)


@pytest.mark.parametrize("model_type", REUSING)
def test_a_layer_that_is_not_known_to_reuse_is_untouched(model_type, monkeypatch):
    monkeypatch.setattr(cache, "reusing_layers", lambda config: frozenset())
    assert_untouched(pair(model_type), INPUTS, "attends more than once in a forward")


@pytest.mark.parametrize("model_type", REUSING)
def test_a_layer_without_keys_of_its_own_or_of_another_is_untouched(model_type, monkeypatch):
    monkeypatch.setattr(Observations, "source", lambda self, key, layer_idx: layer_idx)
    assert_untouched(pair(model_type), INPUTS, "names no layer of the cache")
