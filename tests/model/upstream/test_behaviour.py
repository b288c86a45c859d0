"""What Transformers does, beyond the arguments that its functions take, is as the room of facts has it."""

from pathlib import Path

import pytest
import torch
import transformers
from transformers import DynamicCache, LlamaForCausalLM

import relay_hf
from relay_hf.model.known_code import unknown_hook
from relay_hf.model.upstream import attention, behaviour, caches, masks, models, names, version
from relay_hf.testing import prompts
from tests.support.generating import CACHE, cache_of
from tests.support.tiny_models import tiny_model

ROOT = Path(relay_hf.__file__).parents[1]


def test_stocks_chunks_go_on_behind_a_returned_cache_since_5_21():
    """Before, all of the text goes through on top of what the cache holds."""
    model = tiny_model("llama")
    inputs = prompts(20, (4, 4))
    first = model.generate(**inputs, max_new_tokens=4, pad_token_id=0, return_dict_in_generate=True)
    columns = first.sequences.shape[1]
    options = {"attention_mask": torch.ones(2, columns), "prefill_chunk_size": 2, "max_new_tokens": 2}
    second = model.generate(
        first.sequences, **options, **{CACHE: cache_of(first)}, pad_token_id=0, return_dict_in_generate=True
    )
    assert (cache_of(second).get_seq_length() == columns + 1) == behaviour.CHUNKS_GO_ON


def test_a_cache_is_known_to_be_the_callers():
    model, inputs = tiny_model("llama"), prompts(20, (4, 4))
    given = DynamicCache(config=model.config)
    assert not caches.was_looked_at(given)
    model.generate(**inputs, **{CACHE: given}, max_new_tokens=2, pad_token_id=0)
    assert caches.is_users(given)
    made = cache_of(model.generate(**inputs, max_new_tokens=2, pad_token_id=0, return_dict_in_generate=True))
    assert not caches.is_users(made)
    caches.mark_as_users(made)
    assert caches.is_users(made)
    assert caches.is_plain(made)
    assert not caches.is_plain(DynamicCache(config=model.config, offloading=True))


def test_the_hooks_that_transformers_puts_on_models_are_known():
    model = tiny_model("llama")
    model(torch.ones(1, 3, dtype=torch.int64), output_hidden_states=True)
    model.enable_input_require_grads()
    hooks = [(hook, module) for module in model.modules() for hook in module._forward_hooks.values()]
    assert len(hooks) > 1
    assert all(unknown_hook(*each) is None for each in hooks)
    assert unknown_hook(lambda *args: None, model) is not None


def test_a_models_attention_function_is_found_by_the_name_of_its_implementation():
    module = tiny_model("llama").model.layers[0].self_attn
    assert attention.attention_function(module, "sdpa") is attention.registered_attention("sdpa")
    assert attention.attention_function(module, "eager") is attention.eager_attention(type(module))
    assert attention.eager_attention(type(module)).__name__ == "eager_attention_forward"
    assert attention.layer_index(module) == 0
    assert attention.names_attention(module.config)
    given = attention.AttentionArguments.of(module, {"scaling": 0.5, "is_causal": False, "tilt": 1, "softcap": None})
    assert (given.scaling, given.softcap, given.causal, given.unknown) == (0.5, None, False, "tilt")


def test_the_inputs_that_a_relayed_call_understands_are_those_of_a_forward():
    forward = {*models.forward_inputs(LlamaForCausalLM), *transformers.utils.TransformersKwargs.__annotations__}
    # A tokenizer is generate()'s own; and the cache has a name at a time.
    assert names.KNOWN_INPUTS - forward <= {"tokenizer", "return_dict", *names.CACHE_NAMES}
    assert CACHE in forward


@pytest.mark.parametrize("model_type", ["llama", "mamba", "openai-gpt"])
def test_the_name_of_a_models_cache(model_type):
    inputs = models.forward_inputs(type(tiny_model(model_type)))
    expected = {"llama": CACHE, "mamba": "cache" if version.MINOR >= 24 else "cache_params", "openai-gpt": CACHE}
    assert names.cache_name(inputs) == expected[model_type]
    assert (names.cache_name(inputs) in inputs) == (model_type != "openai-gpt")


def test_settings_of_models_and_configurations():
    model = tiny_model("llama")
    assert masks.makes_masks_ahead(model, model.config)
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()  # since 5.23
    assert any(map(models.checkpoints_gradients, model.modules()))
    assert models.context_length(model.config) == model.config.max_position_embeddings
    assert models.reusing_layers(tiny_model("gemma3n_text").config)
    assert not models.reusing_layers(model.config)
    assert models.replaced_preparation(model) is False
    assert hasattr(transformers.Gemma3TextConfig(), "use_bidirectional_attention")
    assert models.default_cache(model, models.forward_inputs(type(model))).layers
    assert models.default_cache(tiny_model("xlnet"), models.forward_inputs(transformers.XLNetLMHeadModel)) is None
