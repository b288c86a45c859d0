"""Caches asked for by name, given empty, or not wanted at all."""

import copy
from functools import partial

import pytest
from transformers import DynamicCache, StaticCache

import relay_hf
from relay_hf.attention import interface
from tests.support.generating import CACHE
from tests.support.tiny_models import tiny_model

from .compare import NO_PREFILL, ONE, assert_relayed, assert_same_error, assert_untouched, generate

STATIC = "generate() uses a StaticCache here"
# They move layers between a GPU and the host: without one stock fails, and so must we.
OFFLOADED = {
    "offloaded": "generate() uses an offloaded DynamicCache here",
    "offloaded_static": STATIC,
    "offloaded_hybrid": STATIC,
    "offloaded_hybrid_chunked": STATIC,
}
BY_HAND = {
    "dynamic": lambda model: DynamicCache(config=model.config),
    "dynamic of layers to come": lambda model: DynamicCache(),
    "static": lambda model: StaticCache(config=model.config, max_cache_len=64),
}


def relay_cache(model):
    """An empty cache of the caller's: the library's where the model is patched."""
    return (relay_hf.RelayCache if hasattr(model, "relay") else DynamicCache)(config=model.config)


@pytest.mark.parametrize("name", ["dynamic", "hybrid"])
def test_a_name_for_what_generate_makes_anyway(pair, name, deprecations_unsaid):
    assert_relayed(pair, lambda model: generate(model, cache_implementation=name))


@pytest.mark.parametrize("name", ["static", "sliding_window", "hybrid_chunked"])
def test_a_cache_asked_for_by_name(pair, name, deprecations_unsaid):
    assert_untouched(pair, partial(generate, cache_implementation=name), STATIC)


def test_a_static_cache_and_beams(pair):
    assert_untouched(pair, partial(generate, cache_implementation="static", num_beams=2), STATIC)


@pytest.mark.parametrize("name", OFFLOADED)
def test_an_offloaded_cache(pair, name, deprecations_unsaid):
    def call(model):
        try:
            return generate(model, cache_implementation=name)
        except (AssertionError, RuntimeError) as error:  # PyTorch without CUDA, a machine without a GPU
            return type(error), str(error)

    assert_untouched(pair, call, OFFLOADED[name])


@pytest.mark.parametrize("backend", ["quanto", "hqq"])
def test_a_quantized_cache_without_its_backend(pair, backend):
    """Where the backend is missing, and where layers have windows, which it can't hold."""

    def call(model):
        return generate(model, cache_implementation="quantized", cache_config={"backend": backend, "nbits": 4})

    assert_same_error(pair, call, "You need to install|full attention layers")


def test_a_name_that_there_is_not(pair):
    assert_same_error(
        pair, lambda model: generate(model, cache_implementation="none"), "Invalid `cache_implementation`"
    )


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}], ids=str)
def test_no_cache(pair, options):
    assert_untouched(pair, lambda model: generate(model, use_cache=False, **options), "use_cache=False")


def test_no_cache_and_chunks(pair):
    call = partial(generate, use_cache=False, prefill_chunk_size=4)
    assert_same_error(pair, call, "chunking without a cache", "use_cache=False")


@pytest.mark.parametrize("kind", BY_HAND)
def test_a_cache_by_hand(pair, kind):
    assert_untouched(pair, lambda model: generate(model, **{CACHE: BY_HAND[kind](model)}), f"{CACHE} was given")


@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 2}, {"prefill_chunk_size": 3}], ids=["greedy", "beams", "chunks"]
)
def test_a_relay_cache_by_hand(pair, options):
    rows = 4 * options.get("num_beams", 1)
    assert_relayed(pair, lambda model: generate(model, **{CACHE: relay_cache(model)}, **options), rows=rows)


@pytest.mark.parametrize("option", ["use_cache", "output_hidden_states"])
def test_a_relay_cache_by_hand_in_a_call_that_is_not_relayed(pair, option):
    options = {option: option != "use_cache"}
    reason = f"{option}={options[option]}"
    assert_untouched(pair, lambda model: generate(model, **{CACHE: relay_cache(model)}, **options), reason)


def test_a_relay_cache_by_hand_is_empty_again_where_a_relayed_prefill_fails(monkeypatch):
    """Its first layer has stored the rows' own tokens by then: stock must not find them."""
    stock = tiny_model("llama")
    models = stock, relay_hf.patch_model(copy.deepcopy(stock), policy="always")
    attend = interface.attend_layer

    def failing(context, request, *rest):
        if request.layer_idx == 1 and context.cache.is_shared:
            raise RuntimeError("a fault")
        return attend(context, request, *rest)

    monkeypatch.setattr(interface, "attend_layer", failing)
    reason = "a relayed prefill raised RuntimeError: a fault"
    assert_untouched(models, lambda model: generate(model, **{CACHE: relay_cache(model)}), reason)


def test_a_relay_cache_by_hand_where_there_is_no_prefill_to_hook(pair):
    """Nothing is shared, and the cache serves like any other, its tokens taken back with the rejected ones."""

    def call(model):
        return generate(model, ONE, prompt_lookup_num_tokens=3, **{CACHE: relay_cache(model)})

    assert_untouched(pair, call, NO_PREFILL)


def test_a_cache_by_hand_and_by_name(pair):
    def call(model):
        return generate(model, **{CACHE: relay_cache(model)}, cache_implementation="dynamic")

    assert_same_error(pair, call, "Passing both `cache_implementation`")
