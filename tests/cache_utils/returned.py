"""The caches that a call returns on a stock model and on a patched copy of it, to be used in one way and compared."""

import copy
import functools

import torch

import relay_hf
from relay_hf.testing import prompts
from tests.support.generating import CACHE, cache_of, generate
from tests.support.tiny_models import tiny_model

RAGGED = (3, 7, 1, 5)
PREFIX, NEW = 20, 12
WIDTH = PREFIX + max(RAGGED)
FLAT = prompts(PREFIX, RAGGED)


def nested():
    """Rows that share a prefix, of which two by two share more."""
    inputs = prompts(PREFIX, RAGGED)
    for one, other, shared in ((0, 2, 1), (1, 3, 4)):
        ids = inputs["input_ids"]
        start = [WIDTH - own for own in RAGGED]
        ids[other, start[other] : start[other] + shared] = ids[one, start[one] : start[one] + shared]
    return inputs


# Model type, prompts and options: plain attention; under beams; on several levels; windows; windows beside full
# attention; latents; recurrent layers beside attention; both in one layer.
CASES = {
    "plain": ("llama", FLAT, {}),
    "beams": ("llama", FLAT, {"num_beams": 2}),
    "levels": ("llama", nested(), {}),
    "windows": ("mistral", FLAT, {}),
    "some windows": ("gemma2", FLAT, {}),
    "latents": ("deepseek_v3", FLAT, {}),
    "recurrent": ("bamba", FLAT, {}),
    "both": ("falcon_h1", FLAT, {}),
}


@functools.cache
def pair(model_type):
    """A stock model, and a patched copy of it."""
    stock = tiny_model(model_type)
    ours = relay_hf.patch_model(copy.deepcopy(stock), policy="always", min_prefix_length=1, max_store_bytes=0)
    return stock, ours


@functools.cache
def _filled(case):
    model_type, inputs, options = CASES[case]
    stock, ours = pair(model_type)
    found = [generate(m, inputs, return_dict_in_generate=True, eos_token_id=None, **options) for m in (stock, ours)]
    assert torch.equal(found[0].sequences, found[1].sequences)
    assert ours.relay.last.relayed, ours.relay.last
    assert (ours.relay.last.levels > 1) == (case in ("levels", "beams"))
    beams = options.get("num_beams", 1)
    mask = inputs["attention_mask"].repeat_interleave(beams, dim=0)
    return *map(cache_of, found), found[0].sequences, torch.nn.functional.pad(mask, (0, NEW - 1), value=1)


def filled(case):
    """Stock's cache and ours after one call, the tokens, and the mask of what the caches hold."""
    stocks, ours, sequences, mask = _filled(case)
    return copy.deepcopy(stocks), copy.deepcopy(ours), sequences, mask


def assert_same_rows(ours, stocks, mask):
    """Iterating over both gives the same keys and values, but in padding: there ours are zero, stock's arbitrary."""
    assert len(ours) == len(stocks)
    for (*mine, window), (*theirs, stock_window) in zip(ours, stocks, strict=True):
        assert (window is None) == (stock_window is None)
        assert window is None or torch.equal(window, stock_window)
        for one, other in zip(mine, theirs, strict=True):
            assert one.shape == other.shape
            shown = mask[:, -one.shape[2] :].bool()
            one, other = one.transpose(1, 2), other.transpose(1, 2)
            torch.testing.assert_close(one[shown], other[shown], atol=1e-4, rtol=1e-4)


def outcome(use, cache):
    """What a use of the cache returns, or the type of what it raises."""
    try:
        return use(cache)
    except Exception as error:
        return type(error)


def more(model, cache, sequences, mask, **options):
    """A next turn: the tokens so far and three others; the mask is that of what the cache held after its call."""
    ids = torch.nn.functional.pad(sequences, (0, 3), value=7)
    mask = torch.nn.functional.pad(mask, (0, ids.shape[1] - mask.shape[1]), value=1)
    inputs = {"input_ids": ids, "attention_mask": mask}
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "eos_token_id": None, **options}
    wanted = {"return_dict_in_generate": True, "output_logits": True}
    return generate(model, inputs, **{CACHE: cache}, **wanted, **options)


def assert_same_turn(case, ours, stocks, sequences, mask, reason):
    """A next turn gives stock's tokens and logits, with this reason in the report."""
    stock_model, model = pair(CASES[case][0])
    expected, got = (more(m, c, sequences, mask) for m, c in ((stock_model, stocks), (model, ours)))
    assert torch.equal(got.sequences, expected.sequences)
    torch.testing.assert_close(torch.stack(got.logits), torch.stack(expected.logits), atol=1e-4, rtol=1e-4)
    assert model.relay.last.reason == reason, model.relay.last
    assert cache_of(got) is ours
    assert ours.get_seq_length() == stocks.get_seq_length()
