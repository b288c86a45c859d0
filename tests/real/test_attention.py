"""The operator on queries, keys and values of real layers: peaked attention, outliers, a sink at the first token."""

import pytest
import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from relay_hf import showcase
from relay_hf.kernels import reference
from relay_hf.kernels.segment import Segment
from relay_hf.ops import relay_attention

from .chats import chat

ROWS, OWN = 8, 24  # rows, and columns of each behind what is shared
# Times the error of stock attention in the same dtype. In float32 the order of sums decides.
FACTOR = {torch.float32: 2.5, torch.bfloat16: 1.5, torch.float16: 1.5}


@pytest.fixture(scope="module")
def layers(stock, shown):
    """Queries `[8, 9, L, 64]`, keys and values `[8, 3, L, 64]` of each layer, of rows that start alike."""
    seen = []

    def record(module, query, key, value, attention_mask, **options):
        seen.append((query, key, value))
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)

    name = "recorded"
    shared = shown.inputs([chat("")]).input_ids[0]
    texts = shown.tokenizer(list(showcase.QUESTIONS)).input_ids
    own = [torch.tensor(ids[:OWN]) for ids in texts if len(ids) >= OWN][:ROWS]
    ids = torch.stack([torch.cat([shared, row]) for row in own])
    before = stock.config._attn_implementation
    with pytest.MonkeyPatch.context() as registered:  # unknown code in a registry is seen by every call of the process
        registered.setitem(AttentionInterface._global_mapping, name, record)
        registered.setitem(AttentionMaskInterface._global_mapping, name, sdpa_mask)
        stock.set_attn_implementation(name)
        try:
            with torch.no_grad():
                stock(ids)
        finally:
            stock.set_attn_implementation(before)
    return seen


@pytest.mark.parametrize("queries", [1, OWN], ids=["decode", "prefill"])
@pytest.mark.parametrize("dtype", FACTOR, ids=str)
def test_every_layer_is_as_near_to_float64_as_stocks_attention(layers, dtype, queries):
    assert len(layers) == 30
    for number, recorded in enumerate(layers):
        query, key, value = (each.to(dtype) for each in recorded)
        query = query[:, :, -queries:]
        shared = Segment(key[0, :, :-OWN], value[0, :, :-OWN], 0)
        own = (key[:, :, -OWN:], value[:, :, -OWN:])
        wide = Segment(shared.key.double(), shared.value.double(), 0)
        exact = reference.relay_attention(query.double(), [wide], *(each.double() for each in own))
        ours = relay_attention(query, [shared], *own, backend="torch")
        length = key.shape[2]
        visible = torch.ones(queries, length, dtype=torch.bool).tril(length - queries)
        whole = (each.repeat_interleave(3, dim=1) for each in (key, value))
        stocks = F.scaled_dot_product_attention(query, *whole, attn_mask=visible).transpose(1, 2)
        error, allowed = (float((each.double() - exact).square().mean().sqrt()) for each in (ours, stocks))
        assert error <= FACTOR[dtype] * allowed, f"layer {number}: {error:.1e}, stock's {allowed:.1e}"


def test_the_layers_are_what_random_weights_never_show(layers):
    """Otherwise the test above would say nothing new."""
    peaks, largest = [], 0.0
    for query, key, _ in layers:
        scores = query[0, :, -1:] @ key[0].repeat_interleave(3, dim=0).transpose(1, 2) / 8
        weights = scores.softmax(dim=2)[:, 0]
        peaks.append(weights.max(dim=1).values)
        largest = max(largest, float(key.abs().max()))
    assert float(torch.stack(peaks).median()) > 0.3  # half of the heads give a third of their weight to one token
    assert largest > 10
