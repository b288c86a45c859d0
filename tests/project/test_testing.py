"""The tiny Llama that users get is the one that tests build of their table of sizes."""

import pytest
import torch

import relay_hf.testing
from tests.support import tiny_models


@pytest.mark.parametrize(("seed", "sizes"), [(0, {}), (3, {"num_hidden_layers": 3, "max_position_embeddings": 64})])
def test_it_is_the_same_model(seed, sizes):
    one = relay_hf.testing.tiny_model("llama", seed, **sizes)
    other = tiny_models.tiny_model("llama", seed, **sizes)
    assert one.config.to_dict() == other.config.to_dict()
    for (name, weight), (_, expected) in zip(one.state_dict().items(), other.state_dict().items(), strict=True):
        assert torch.equal(weight, expected), name
    assert not one.training


def test_another_type_is_refused():
    with pytest.raises(ValueError, match="must be 'llama'; got 'gpt2'"):
        relay_hf.testing.tiny_model("gpt2")
