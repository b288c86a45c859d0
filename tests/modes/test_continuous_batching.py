"""Continuous batching goes around generate(): a patched model serves it as stock does."""

from transformers import ContinuousBatchingConfig, GenerationConfig

from .compare import INPUTS, assert_same, generate

ROWS = [ids[mask.bool()].tolist() for ids, mask in zip(*INPUTS.values(), strict=True)]
ROOM = {"num_blocks": 16, "max_batch_tokens": 64}


def generate_batch(model):
    config = GenerationConfig(max_new_tokens=4, do_sample=False, eos_token_id=-1, pad_token_id=0)
    room = ContinuousBatchingConfig(**ROOM)
    answers = model.generate_batch(ROWS, generation_config=config, continuous_batching_config=room)
    # Stock fails for some families, and says so in the answers.
    return [(answer.generated_tokens, answer.error) for answer in answers.values()]


def test_generate_batch(pair):
    stock, ours = pair
    ours.relay.clear()
    generate(ours)
    before, calls = ours.relay.last, ours.relay.stats().calls
    expected = generate_batch(stock)
    assert len(expected) == len(ROWS)
    assert_same(generate_batch(ours), expected)
    assert ours.relay.last is before
    assert ours.relay.stats().calls == calls
    generate(ours)
    assert (ours.relay.last.relayed, ours.relay.last.prefix_tokens_reused) == (True, 20)
