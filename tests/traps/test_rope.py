"""RoPE whose frequencies depend on the length: a prefix alone may be in another regime than inside its prompt."""

import pytest
import torch

import relay_hf
from relay_hf.generation import eligibility, prefill_hook
from relay_hf.testing import prompts
from tests.models.trial import TOLERANCE
from tests.support.generating import CACHE, cache_of

from .compare import LEAST_WRONG, assert_relayed, assert_untouched, assert_wrong, error, pair, run, then

INPUTS = prompts(20, (3, 7, 1, 5))  # 27 columns
SHORT = {name: value[:, :24] for name, value in prompts(20, (4, 4)).items()}

_DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
_FACTORS = {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4, "factor": 4.0}


def _longrope(limit):
    return {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": limit, **_FACTORS}


def dynamic(limit):
    return pair("llama", rope_parameters=_DYNAMIC, max_position_embeddings=limit)


def longrope(limit):
    return pair("llama", rope_parameters=_longrope(limit), max_position_embeddings=4 * limit)


def phi3(limit):
    sizes = {"original_max_position_embeddings": limit, "max_position_embeddings": 4 * limit}
    return pair("phi3", rope_parameters=_longrope(limit), **sizes)


def of_one_kind_of_layer(limit):
    """The layers with windows keep their frequencies, the others don't."""
    by_kind = {"sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}, "full_attention": _DYNAMIC}
    return pair("gemma3_text", rope_parameters=by_kind, max_position_embeddings=limit)


def no_guard(monkeypatch):
    monkeypatch.setattr(eligibility, "rope_refusal", lambda configs, length: None)


KINDS = [dynamic, longrope, phi3, of_one_kind_of_layer]


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_beyond_the_switch_is_untouched(kind):
    assert_untouched(kind(25), INPUTS, "RoPE changes beyond 25 tokens, and the prompt has 27")


# Not Phi3: beyond its switch it drops whatever cache holds less, and computes everything again.
@pytest.mark.parametrize("kind", [dynamic, longrope, of_one_kind_of_layer])
def test_a_prompt_beyond_the_switch_needs_its_guard(kind, monkeypatch):
    no_guard(monkeypatch)
    assert_wrong(kind(25), INPUTS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_generation_that_crosses_the_switch_is_relayed(kind):
    stock, ours = kind(32)
    for _ in range(3):
        assert error(run(stock, INPUTS, new=12), run(ours, INPUTS, new=12)) <= TOLERANCE
        assert ours.relay.last.relayed, ours.relay.last
        assert ours.relay.last.prefix_length == 20


@pytest.mark.parametrize("kind", KINDS)
def test_below_the_switch_the_prefix_is_kept(kind):
    assert_relayed(kind(64), INPUTS)


def short_then_long(models):
    """The second prompt starts with what the first one left."""
    stock, ours = models
    run(ours, SHORT, new=1)
    assert [len(kept) for kept in ours.relay.prefixes] == [20]
    return error(run(stock, INPUTS), run(ours, INPUTS))


@pytest.mark.parametrize("kind", [dynamic, longrope])
def test_a_prefix_kept_by_a_short_prompt_is_not_used_in_a_long_one(kind):
    models = kind(26)
    assert short_then_long(models) <= TOLERANCE
    assert "RoPE changes beyond 26 tokens" in models[1].relay.last.reason


@pytest.mark.parametrize("kind", [dynamic, longrope])
def test_a_prefix_kept_by_a_short_prompt_needs_the_guard(kind, monkeypatch):
    no_guard(monkeypatch)
    models = kind(26)
    assert short_then_long(models) > LEAST_WRONG
    assert models[1].relay.last.prefix_tokens_reused == 20


@pytest.mark.parametrize("kind", [longrope, phi3])
def test_a_prefix_beyond_the_switch_is_not_kept(kind):
    """With dynamic RoPE it is longer than the model's context, too."""
    _, ours = kind(26)
    with pytest.raises(relay_hf.RelayError, match="RoPE changes beyond 26 tokens, and the prompt has 30"):
        ours.relay.warm(prompts(30, (1,))["input_ids"][0, :30])


def test_a_prefix_beyond_the_switch_needs_the_guard(monkeypatch):
    """Kept in the regime of long prompts, its start is used by a short one."""
    no_guard(monkeypatch)
    stock, ours = longrope(26)
    ids = prompts(30, (1,))["input_ids"][0, :30]
    ours.relay.warm(ids)
    short = {"input_ids": torch.cat([ids[:20].repeat(2, 1), torch.tensor([[5], [6]])], dim=1)}
    short["attention_mask"] = torch.ones_like(short["input_ids"])
    assert error(run(stock, short), run(ours, short)) > LEAST_WRONG
    assert ours.relay.last.prefix_tokens_reused == 20


def long_then_as_long_as_the_limit(models):
    """At the limit itself dynamic RoPE is not reset: it goes on with what the longer call before has left."""
    stock, ours = models
    for model in models:
        run(model, SHORT)
    return error(run(stock, INPUTS), run(ours, INPUTS))


def test_the_limit_itself_belongs_to_the_long_prompts():
    models = dynamic(27)
    assert long_then_as_long_as_the_limit(models) <= TOLERANCE
    assert "RoPE changes beyond 27 tokens, and the prompt has 27" in models[1].relay.last.reason


def test_the_limit_itself_needs_the_guard(monkeypatch):
    guard = eligibility.rope_refusal
    monkeypatch.setattr(eligibility, "rope_refusal", lambda configs, length: guard(configs, length - 1))
    models = dynamic(27)
    assert long_then_as_long_as_the_limit(models) > LEAST_WRONG
    assert models[1].relay.last.relayed


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_turn_that_crosses_the_switch(kind):
    """On a returned cache: what is in it stays as it was, for stock too."""
    outputs = []
    for model in kind(38):
        first = run(model, INPUTS, eos_token_id=None)
        outputs.append(run(model, then(first, INPUTS), **{CACHE: cache_of(first)}))
    assert error(*outputs) <= TOLERANCE
    assert (model.relay.last.relayed, model.relay.last.reason) == (True, "a returned cache, continued")


def in_the_layout_of_the_forward(relayed):
    """A prefill that leaves the loop the mask as our forwards have it, the prefix before the padding."""

    def prefill(call, decision, asked):
        outputs, inputs = relayed(call, decision, asked), asked.inputs
        mask, length = inputs["attention_mask"], decision.report().prefix_length
        rows = [
            torch.cat([row[start:][:length], row[:start], row[start + length :]])
            for row, start in zip(mask, decision.prompts.start.tolist(), strict=True)
        ]
        inputs["attention_mask"] = torch.stack(rows)
        return outputs

    return prefill


def test_phi3_drops_its_cache_and_needs_the_loop_in_the_layout_of_the_caller(monkeypatch):
    models = phi3(32)
    assert_relayed(phi3(64), INPUTS)
    monkeypatch.setattr(prefill_hook, "_relayed", in_the_layout_of_the_forward(prefill_hook._relayed))
    assert_relayed(phi3(64), INPUTS)  # what no layer reads does no harm
    assert_wrong(models, INPUTS)
