"""No row's output depends on what the other rows say."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import relay_hf
from tests.support.sweeps import all_but_swept

from .batches import batches, with_other_rows
from .scores import FAMILIES, SETTINGS, run, stock, tolerance


def patched(family):
    return relay_hf.patch_model(copy.deepcopy(stock(family)), policy="always", min_prefix_length=1, max_store_bytes=0)


@pytest.mark.parametrize("family", all_but_swept(FAMILIES))
def test_a_row_is_the_same_whatever_the_others_say(family):
    model = patched(family)

    @SETTINGS
    @given(st.data())
    def examples(data):
        batch = data.draw(batches())
        row = data.draw(st.integers(0, len(batch.own) - 1))
        other = data.draw(with_other_rows(batch, row))
        tokens, logits = run(model, batch)
        assert model.relay.last.relayed, model.relay.last
        tokens_beside_others, logits_beside_others = run(model, other)
        assert model.relay.last.relayed, model.relay.last
        assert torch.equal(tokens[row], tokens_beside_others[row])
        assert float((logits[row] - logits_beside_others[row]).abs().max()) <= tolerance(family)

    examples()


def test_rows_padded_on_the_right_are_left_to_stock_and_are_the_same():
    model = patched("llama")
    start, own, other = [5] * 12, [[3, 4, 5], [6, 3]], [[3, 4, 5], [4]]
    outputs = []
    for ends in (own, other):
        rows = [start + end for end in ends]
        ids = torch.tensor([row + [0] * (15 - len(row)) for row in rows])
        out = model.generate(input_ids=ids, attention_mask=(ids > 0).long(), max_new_tokens=5, min_new_tokens=5)
        assert "ends in padding" in model.relay.last.reason
        outputs.append(out[0])
    assert torch.equal(*outputs)
