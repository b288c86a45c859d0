"""Models that reuse a kept prefix, and the guard taken away."""

import copy

import torch

import relay_hf
from relay_hf.model.fingerprint.fingerprint import ModelFingerprint
from relay_hf.prefix import store
from tests.support.counts import count_tried
from tests.support.generating import generate

from .mutations import INPUTS, Change


def mutate(model, change: Change) -> None:
    torch.manual_seed(0)
    change(model)
    count_tried("changes applied to models")


def reusing(stock):
    """A patched copy that has been seen to reuse its kept prefix. The user vouches for whatever is put into it."""
    ours = relay_hf.patch_model(copy.deepcopy(stock), policy="always", trust=["*"])
    for _ in range(2):
        assert torch.equal(generate(ours, INPUTS), generate(stock, INPUTS))
    assert ours.relay.last.prefix_tokens_reused == 30, ours.relay.last
    return ours


def logits(model, inputs=INPUTS) -> torch.Tensor:
    """Of the twelve steps: `[12, B, vocabulary]`."""
    found = generate(model, inputs, output_logits=True, return_dict_in_generate=True)
    return torch.stack(found.logits)


def blind(monkeypatch) -> None:
    """Nothing looks at the model any more."""
    monkeypatch.setattr(ModelFingerprint, "same", lambda *_: True)
    monkeypatch.setattr(store, "_embeddings_hold", lambda *_: True)
