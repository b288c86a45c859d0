"""Assisted decoding and prompt lookup: candidates go through the model and are taken back, without a common prefill."""

from functools import cache, partial

import pytest

import relay_hf
from tests.support.model_snapshot import snapshot
from tests.support.tiny_models import tiny_model

from .compare import (
    FAMILIES,
    NO_PREFILL,
    ONE,
    assert_reason,
    assert_same,
    assert_same_error,
    assert_untouched,
    build_pair,
    generate,
    keep_prefix,
    seeded,
)

# Transformers calls an assistant in a way that it has deprecated itself.
pytestmark = pytest.mark.usefixtures("deprecations_unsaid")

ROLLS_BACK = "this call is an assistant's, which rolls back its cache"


@cache
def assistant_of(family, patched):
    assistant = tiny_model(family, seed=5)
    return relay_hf.patch_model(assistant, policy="always") if patched else assistant


def family_of(model):
    return model.config.model_type


@pytest.mark.parametrize("options", [{}, {"do_sample": True}], ids=["greedy", "sampling"])
def test_prompt_lookup(pair, options):
    assert_untouched(pair, lambda model: generate(model, ONE, prompt_lookup_num_tokens=3, **options), NO_PREFILL)


@pytest.mark.parametrize("options", [{}, {"do_sample": True}], ids=["greedy", "sampling"])
def test_an_assistant(pair, options):
    def call(model):
        # A new one for each call: Transformers writes what a call has learnt (a threshold) to its configuration.
        assistant = tiny_model(family_of(model), seed=5)
        return generate(model, ONE, assistant_model=assistant, **options)

    assert_untouched(pair, call, NO_PREFILL)


def test_a_model_that_assists_itself(pair):
    assert_untouched(pair, lambda model: generate(model, ONE, assistant_model=model), NO_PREFILL)


def test_both_patched(pair):
    assistant = assistant_of(family_of(pair[0]), patched=True)
    keep_prefix(assistant)

    def call(model):
        return generate(model, ONE, assistant_model=assistant_of(family_of(model), patched=hasattr(model, "relay")))

    assert_untouched(pair, call, NO_PREFILL)
    assert_reason(assistant, ROLLS_BACK)


def test_the_assistant_alone_patched(pair):
    stock, assistant = pair[0], assistant_of(family_of(pair[0]), patched=True)
    keep_prefix(assistant)
    plain = assistant_of(family_of(stock), patched=False)
    expected, got = [seeded(partial(generate, inputs=ONE, assistant_model=a), stock) for a in (plain, assistant)]
    assert_same(got, expected)
    assert_reason(assistant, ROLLS_BACK)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_that_exits_early_to_assist_itself(family):
    """Stock fails for some families, and leaves the model with fewer layers then: models of this test's own."""

    def call(model):
        try:
            return generate(model, ONE, assistant_early_exit=1)
        except (IndexError, TypeError) as error:
            return type(error).__name__, str(error)

    stock, ours = build_pair.__wrapped__(family)
    expected = seeded(call, stock)
    keep_prefix(ours)
    assert_same(seeded(call, ours), expected)
    assert_reason(ours, f"the call raised {expected[0]}" if isinstance(expected, tuple) else NO_PREFILL)


def test_a_batch_is_refused_alike(pair):
    message = "only supported for batch_size = 1"
    assert_same_error(pair, lambda model: generate(model, prompt_lookup_num_tokens=3), message)
    plain = assistant_of(family_of(pair[0]), patched=False)
    assert_same_error(pair, lambda model: generate(model, assistant_model=plain), message)


def test_no_cache_is_refused_alike(pair):
    call = partial(generate, inputs=ONE, prompt_lookup_num_tokens=3, use_cache=False)
    # The second since Transformers 5.24.
    assert_same_error(pair, call, "requires `use_cache=True`|Assisted decoding requires a cache")


def test_layers_that_predict_several_tokens_are_missed_alike(pair):
    assert_same_error(pair, lambda model: generate(model, ONE, use_mtp=True), "num_mtp_layers|Repo id")


def test_explain_stops_before_the_assistant():
    ours, assistant = build_pair("llama")[1], tiny_model("llama", seed=5)
    assistant.get_input_embeddings().register_forward_hook(lambda *args: pytest.fail("the assistant ran"))
    before = snapshot(assistant)
    assert NO_PREFILL in ours.relay.explain(**ONE, max_new_tokens=3, assistant_model=assistant).reason
    assert snapshot(assistant) == before
    relay_hf.patch_model(assistant)
    assert NO_PREFILL in ours.relay.explain(**ONE, max_new_tokens=3, assistant_model=assistant).reason
    assert (assistant.relay.last, assistant.relay.stats().calls) == (None, 0)


def test_explain_leaves_a_model_that_assists_itself_its_layers():
    """Transformers takes layers off for the time of the draft, and an exception would leave it without."""
    ours = build_pair("llama")[1]
    assert NO_PREFILL in ours.relay.explain(**ONE, max_new_tokens=3, assistant_early_exit=1).reason
    assert ours.config.num_hidden_layers == 2
