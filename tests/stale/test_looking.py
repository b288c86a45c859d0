"""The model is looked at where something that is kept is to be used, and at no other time; and then in time."""

import weakref

import pytest
import torch

import relay_hf
from relay_hf.model import device
from relay_hf.model.device import store_key
from relay_hf.model.fingerprint.fingerprint import ModelFingerprint
from relay_hf.model.modules import all_modules
from relay_hf.testing import prompts
from tests.support.generating import CACHE, cache_of, generate
from tests.support.tiny_models import tiny_model

INPUTS = prompts(30, (3, 5))
PREFIX = INPUTS["input_ids"][1, :30]


def apart(rows, columns):
    """Rows that share nothing with each other or with `PREFIX`."""
    ids = torch.arange(3, 3 + columns).repeat(rows, 1)
    ids[:, 0] = (PREFIX[0] - 3 + 1 + torch.arange(rows)) % 90 + 3
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def from_prefix(tokens, rows=1):
    ids = torch.cat(
        [PREFIX[:tokens].repeat(rows, 1), torch.arange(70, 75).repeat(rows, 1) + torch.arange(rows)[:, None]], 1
    )
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.fixture
def pair():
    stock, ours = tiny_model("llama"), relay_hf.patch_model(tiny_model("llama"), policy="always")
    ours.relay.warm(PREFIX)
    return stock, ours


@pytest.fixture
def looks(pair, monkeypatch):
    keeper, found = pair[1].relay._hooks.store, []
    look = keeper.look
    monkeypatch.setattr(keeper, "look", lambda *given: found.append(look(*given)) or found[-1])
    return found


@pytest.mark.parametrize(
    ("inputs", "policy", "reason"),
    [
        (apart(1, 8), "always", "one row of 8 tokens, fewer than min_prefix_length=16"),
        (apart(3, 20), "always", "the rows share 0 tokens, fewer than min_prefix_length=16"),
        (from_prefix(12), "always", "kept for later calls"),
        (from_prefix(30), "auto", "policy 'auto': relaying is expected to cost"),
    ],
    ids=["too short", "nothing alike", "too little of it kept", "not worth it"],
)
def test_what_is_kept_and_not_used_costs_no_look(pair, looks, inputs, policy, reason):
    stock, ours = pair
    relay_hf.patch_model(ours, policy=policy)
    assert torch.equal(generate(ours, inputs), generate(stock, inputs))
    assert ours.relay.last.reason.startswith(reason), ours.relay.last
    assert ours.relay.last.prefix_tokens_reused == 0
    assert looks == []
    assert len(ours.relay.prefixes[0]) >= 30


def test_what_is_used_costs_one(pair, looks):
    stock, ours = pair
    assert torch.equal(generate(ours, INPUTS), generate(stock, INPUTS))
    assert ours.relay.last.prefix_tokens_reused == 30
    assert len(looks) == 1


def test_a_model_that_has_changed_starts_anew(pair, looks):
    stock, ours = pair
    for model in pair:
        model.model.layers[0].self_attn.v_proj.weight.data.mul_(1.5)
    assert torch.equal(generate(ours, INPUTS), generate(stock, INPUTS))
    assert looks == [None]
    assert ours.relay.last.relayed
    assert ours.relay.last.prefix_tokens_reused == 0
    generate(ours, INPUTS)
    assert ours.relay.last.prefix_tokens_reused == 30


def test_of_a_model_that_has_moved_nothing_stays_in_the_memory_where_it_was(pair):
    """To another dtype, as to another device: no prompt can match what is kept there."""
    _, ours = pair
    held = weakref.ref(ours.relay.prefixes[0])
    ours.double()
    generate(ours, apart(3, 20))
    assert not ours.relay.last.relayed
    assert held() is None


def before_the_look(monkeypatch, ours, what):
    """Do something, once, between the comparison of tokens and the look at the model, as another thread may."""
    keeper = ours.relay._hooks.store
    look = keeper.look

    def then_look(*given):
        monkeypatch.undo()
        what()
        return look(*given)

    monkeypatch.setattr(keeper, "look", then_look)


@pytest.mark.parametrize("half", [slice(0, 20), slice(20, 30)], ids=["first", "second"])
def test_of_a_prefix_that_is_divided_meanwhile_all_tokens_are_looked_at(pair, monkeypatch, half):
    """By the rows of the embedding that a prefix uses: this one has no sample of the whole matrix in it."""
    stock, ours = pair
    keeper, context, witness = ours.relay._hooks.store, store_key(ours), ModelFingerprint(all_modules(ours))
    other = set(PREFIX.tolist()) - set(PREFIX[half].tolist())
    for token in set(PREFIX[half].tolist()) - other:
        ours.get_input_embeddings().weight.data[token] *= -2
        if witness.holds(all_modules(ours)):
            break
        ours.get_input_embeddings().weight.data[token] /= -2
    else:
        pytest.fail("every row has a sample in it")
    stock.get_input_embeddings().weight.data[token] *= -2
    before_the_look(monkeypatch, ours, lambda: keeper.ending(PREFIX[:20], context, pin=False))
    assert torch.equal(generate(ours, INPUTS), generate(stock, INPUTS))
    assert ours.relay.last.prefix_tokens_reused == 0


def test_what_another_thread_keeps_of_the_changed_model_is_not_mixed_up_with_what_was_found(pair, monkeypatch):
    stock, ours = pair

    theirs = []

    def change():
        for model in pair:
            model.model.layers[0].self_attn.v_proj.weight.data.mul_(1.5)
        ours.relay.clear()
        theirs.append(ours.relay.warm(PREFIX))

    before_the_look(monkeypatch, ours, change)
    assert torch.equal(generate(ours, INPUTS), generate(stock, INPUTS))
    assert ours.relay.last.prefix_tokens_reused == 0
    assert [*ours.relay.prefixes] == theirs, "and it stays"
    generate(ours, INPUTS)
    assert ours.relay.last.prefix_tokens_reused == 30


@pytest.mark.parametrize("kind", ["precision", "determinism"])
def test_a_prefix_is_of_the_arithmetic_that_it_was_made_under(pair, kind):
    stock, ours = pair
    precision = torch.backends.mkldnn.matmul.fp32_precision
    if kind == "precision":
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    else:
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.equal(generate(ours, INPUTS), generate(stock, INPUTS))
        assert (ours.relay.last.relayed, ours.relay.last.prefix_tokens_reused) == (True, 0)
        cache = cache_of(generate(ours, INPUTS, return_dict_in_generate=True))
        assert ours.relay.last.prefix_tokens_reused == 30
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = precision
        torch.use_deterministic_algorithms(False)
    tokens = generate(ours, INPUTS)
    assert torch.equal(tokens, generate(stock, INPUTS))
    assert ours.relay.last.prefix_tokens_reused == 30, "what was kept before"
    ids = torch.cat([tokens, tokens[:, -1:]], dim=1)
    generate(ours, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, **{CACHE: cache})
    assert "under another autocast or arithmetic" in ours.relay.last.reason


def test_what_one_stream_has_kept_serves_no_other(pair, monkeypatch):
    """It would wait for nothing that the first has still to compute. Streams are a GPU's: here their number is told."""
    stock, ours = pair
    for stream, reused in ((2, 0), (2, 30), (1, 0), (1, 30), (2, 30)):
        monkeypatch.setattr(device, "stream_of", lambda device, stream=stream: stream)
        assert torch.equal(generate(ours, INPUTS), generate(stock, INPUTS))
        assert (ours.relay.last.relayed, ours.relay.last.prefix_tokens_reused) == (True, reused)
    cache = cache_of(generate(ours, INPUTS, return_dict_in_generate=True))
    monkeypatch.setattr(device, "stream_of", lambda device: 1)
    longer = torch.cat([generate(stock, INPUTS), INPUTS["input_ids"][:, :1]], dim=1)
    new = longer.shape[1] - INPUTS["input_ids"].shape[1]
    mask = torch.nn.functional.pad(INPUTS["attention_mask"], (0, new), value=1)
    given = {"input_ids": longer, "attention_mask": mask}
    assert torch.equal(generate(ours, given, **{CACHE: cache}), generate(stock, given))
    assert ours.relay.last.reason == "a returned cache, continued", "who passes it on sees to its stream, as in stock"
