"""Models that run some of their layers several times, each time with keys and values of their own (since 5.24)."""

import copy

import pytest
import torch
from transformers import DynamicCache

import relay_hf
from relay_hf.testing import prompts
from tests.models.trial import TOLERANCE
from tests.support.generating import CACHE, cache_of, generate
from tests.support.tiny_models import tiny_model

INPUTS = prompts(20, (3, 7, 1, 5))
SCORES = {"return_dict_in_generate": True, "output_logits": True}
# Inkling computes its gates in float32 whatever it is given.
DTYPES = {"dory": torch.float64, "inkling2_loop_text": torch.float32}
EXACT = {torch.float64: 1e-11, torch.float32: TOLERANCE}


def pair(model_type, **overrides):
    stock = tiny_model(model_type, **overrides).to(DTYPES[model_type])
    return stock, relay_hf.patch_model(copy.deepcopy(stock), policy="always")


def assert_same(stock, ours):
    assert torch.equal(stock.sequences, ours.sequences)
    error = max(float((a - b).abs().max()) for a, b in zip(stock.logits, ours.logits, strict=True))
    assert error < EXACT[stock.logits[0].dtype]


@pytest.mark.parametrize("how", ["as returned", "deep-copied", "as a DynamicCache"])
@pytest.mark.parametrize("model_type", DTYPES)
def test_every_pass_has_its_own_segments(model_type, how):
    models = pair(model_type)
    for reused in (False, True):
        first = [generate(model, INPUTS, **SCORES) for model in models]
        assert_same(*first)
        report = models[1].relay.last
        assert (report.relayed, report.prefix_tokens_reused > 0) == (True, reused), report
    caches = [cache_of(each) for each in first]
    passes = len(caches[0].layers) - models[0].config.num_hidden_layers
    assert passes == 4  # two layers, twice more
    assert len(caches[1].layers) == len(caches[0].layers)
    assert all(layer.shared for layer in caches[1].kv_layers.values())
    for stocks, layer in zip(caches[0].layers, caches[1].to_dynamic().layers, strict=True):
        assert torch.allclose(stocks.keys[:, :, -10:], layer.keys[:, :, -10:], atol=EXACT[DTYPES[model_type]])
    if how == "deep-copied":
        caches[1] = copy.deepcopy(caches[1])
    if how == "as a DynamicCache":
        caches[1] = caches[1].to_dynamic()
        assert type(caches[1]) is DynamicCache
    turn = torch.cat([first[0].sequences, torch.full((4, 3), 7)], dim=1)
    mask = torch.nn.functional.pad(INPUTS["attention_mask"], (0, turn.shape[1] - 27), value=1)
    then = {"input_ids": turn, "attention_mask": mask}
    second = [generate(model, then, **SCORES, **{CACHE: cache}) for model, cache in zip(models, caches, strict=True)]
    assert_same(*second)
    assert models[1].relay.last.relayed == (how != "as a DynamicCache"), models[1].relay.last


def test_passes_that_share_keys_are_left_to_stock():
    """The first ones attend to what the cache holds by reading it past the cache, and would find own tokens alone."""
    stock, ours = pair("dory", recurrent_kv_cache_mode="last_loop")
    assert_same(generate(stock, INPUTS, **SCORES), generate(ours, INPUTS, **SCORES))
    assert ours.relay.last.reason == "layer 1 attends to other keys than the cache holds for it"
