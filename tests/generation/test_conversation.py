"""Conversations: each turn prefills only what is new, whatever is said, and nothing stale survives."""

import copy
import functools

import pytest
import torch
from transformers import TextStreamer

import relay_hf
from relay_hf.testing import VOCABULARY
from tests.support.generating import CACHE, cache_of
from tests.support.kept_bytes import held_bytes
from tests.support.tiny_models import tiny_model

# Plain attention; learned positions; softcap and windows; sinks, windows and experts; attention code of its own;
# recurrent layers beside attention, and alone; those that go on from a state one token at a time.
KINDS = ("llama", "gpt2", "gemma2", "gpt_oss", "bloom", "qwen3_next", "mamba2", "jamba")
PROMPT, NEW, TURN = 21, 7, 4


@functools.cache
def pair(kind):
    stock = tiny_model(kind)
    return stock, relay_hf.patch_model(copy.deepcopy(stock), policy="always")


@pytest.fixture(params=KINDS)
def models(request):
    found = pair(request.param)
    found[1].relay.clear()
    return found


@pytest.fixture
def llamas():
    found = pair("llama")
    found[1].relay.clear()
    return found


def words(seed, count, rows=1):
    return torch.randint(3, VOCABULARY, (rows, count), generator=torch.Generator().manual_seed(seed))


def answer(model, ids, mask=None, **options):
    torch.manual_seed(0)
    mask = torch.ones_like(ids) if mask is None else mask
    count = {"max_new_tokens": NEW, "min_new_tokens": NEW}
    wanted = {"return_dict_in_generate": True, "output_logits": True}
    return model.generate(ids, attention_mask=mask, **{**count, **wanted, **options})


def said(models, ids, mask=None, **options):
    """Stock's answer from both; the sequence, and our report."""
    stock, ours = models
    expected, got = (answer(model, ids, mask, **options) for model in (stock, ours))
    assert torch.equal(got.sequences, expected.sequences)
    for one, other in zip(got.logits, expected.logits, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)
    if isinstance(got.get(CACHE), relay_hf.RelayCache) and mask is None:
        layers = zip(cache_of(expected).layers, cache_of(got).to_dynamic().layers, strict=True)
        for one, other in layers:
            if getattr(one, "keys", None) is not None:
                length = one.keys.shape[2]
                torch.testing.assert_close(other.keys[:, :, -length:], one.keys, rtol=0, atol=1e-4)
                assert other.get_seq_length() == one.get_seq_length()
    return got.sequences, ours.relay.last


@pytest.mark.parametrize("options", [{}, {"do_sample": True}], ids=["greedy", "sampling"])
def test_a_turn_prefills_only_what_is_new(models, options):
    """The last token of an answer has not been through the model, so it is new as well."""
    ids, report = said(models, words(1, PROMPT), **options)
    assert (report.relayed, report.reason, report.prompt_tokens_computed) == (True, "kept for later calls", PROMPT)
    for turn in range(2, 6):
        before = ids.shape[1]
        ids, report = said(models, torch.cat([ids, words(turn, TURN)], dim=1), **options)
        assert (report.relayed, report.prefix_tokens_reused) == (True, before - 1), report
        assert report.prompt_tokens_computed == TURN + 1
        assert report.prompt_tokens_saved == before - 1


def test_where_the_cache_keeps_latents_answers_are_new_too():
    """What attention saw of them is gone when the call ends."""
    models = pair("deepseek_v3")
    models[1].relay.clear()
    ids, _ = said(models, words(1, PROMPT))
    ids, report = said(models, torch.cat([ids, words(2, TURN)], dim=1))
    assert report.prefix_tokens_reused == PROMPT
    ids, report = said(models, torch.cat([ids, words(3, TURN)], dim=1))
    assert report.prefix_tokens_reused == PROMPT + NEW + TURN


def test_a_long_conversation_lies_in_few_runs(llamas):
    ids, _ = said(llamas, words(1, PROMPT))
    for turn in range(12):
        ids, report = said(llamas, torch.cat([ids, words(10 + turn, TURN)], dim=1))
        assert report.prefix_tokens_reused == ids.shape[1] - NEW - TURN - 1
    assert len(llamas[1].relay.prefixes) <= 4


def test_of_a_recurrent_model_it_is_joined_for_the_call():
    models = pair("qwen3_next")
    models[1].relay.clear()
    ids, _ = said(models, words(1, PROMPT))
    for turn in range(7):
        ids, report = said(models, torch.cat([ids, words(10 + turn, TURN)], dim=1))
        assert report.prefix_tokens_reused == ids.shape[1] - NEW - TURN - 1
    assert len(models[1].relay.prefixes) == 8
    cache = cache_of(answer(models[1], torch.cat([ids, words(30, TURN)], dim=1)))
    assert {len(layer.shared) for layer in cache.kv_layers.values()} == {1}


def test_another_turn_after_the_same_start(models):
    """An answer that is edited, and a question that is asked in another way."""
    start, _ = said(models, words(1, PROMPT))
    first, _ = said(models, torch.cat([start, words(2, TURN)], dim=1))
    edited = first.clone()
    edited[0, -3] = (edited[0, -3] + 1) % (VOCABULARY - 3) + 3
    _, report = said(models, torch.cat([edited, words(3, TURN)], dim=1))
    recurrent = models[0].config.model_type in ("qwen3_next", "mamba2", "jamba")
    # States are known behind the first answer, up to the last token that went through the model, and behind the second.
    assert report.prefix_tokens_reused == (PROMPT + NEW - 1 if recurrent else first.shape[1] - 3)
    _, report = said(models, torch.cat([start, words(4, TURN)], dim=1))
    assert report.prefix_tokens_reused == (PROMPT + NEW - 1 if recurrent else PROMPT + NEW)


def test_rows_of_a_batch_go_on_from_conversations_of_their_own(llamas):
    """Each was one call's; now they are asked together, left-padded, and share their system prompt besides."""
    talks = []
    for row in range(3):
        prompt = torch.cat([words(1, PROMPT), words(20 + row, 12 + 3 * row)], dim=1)
        ids, _ = said(llamas, prompt)
        talks.append(torch.cat([ids, words(30 + row, TURN)], dim=1)[0])
    talks.append(words(40, 30)[0])
    width = max(map(len, talks))
    ids = torch.stack([torch.nn.functional.pad(talk, (width - len(talk), 0)) for talk in talks])
    mask = torch.stack([torch.nn.functional.pad(torch.ones_like(t), (width - len(t), 0)) for t in talks])
    _, report = said(llamas, ids, mask)
    new = 3 * (TURN + 1) + 30
    assert (report.relayed, report.prompt_tokens_computed) == (True, new), report
    assert report.reason == "some of the rows start alike"
    assert report.levels == 1
    assert report.prefix_tokens_reused == PROMPT + sum(len(talk) - PROMPT - TURN - 1 for talk in talks[:3])


def test_a_padded_row(llamas):
    ids, mask = torch.nn.functional.pad(words(1, PROMPT), (5, 0)), None
    mask = torch.nn.functional.pad(torch.ones(1, PROMPT, dtype=torch.int64), (5, 0))
    ids, _ = said(llamas, ids, mask)
    _, report = said(llamas, torch.cat([ids[:, 5:], words(2, TURN)], dim=1))
    assert report.prefix_tokens_reused == PROMPT + NEW - 1


def test_behind_a_hole_nothing_is_kept(llamas):
    ids, mask = words(1, PROMPT + 4), torch.ones(1, PROMPT + 4, dtype=torch.int64)
    mask[0, PROMPT:-2] = 0
    ids, _ = said(llamas, ids, mask)
    _, report = said(llamas, torch.cat([ids, words(2, TURN)], dim=1))
    assert report.prefix_tokens_reused == PROMPT


@pytest.mark.parametrize("chunk", [4, 50])
def test_chunks(llamas, chunk):
    ids, _ = said(llamas, words(1, PROMPT), prefill_chunk_size=chunk)
    _, report = said(llamas, torch.cat([ids, words(2, TURN)], dim=1), prefill_chunk_size=chunk)
    assert report.prefix_tokens_reused == PROMPT + NEW - 1


def test_what_the_caller_does_with_a_returned_cache_does_not_reach_what_is_kept(llamas):
    out = answer(llamas[1], words(1, PROMPT))
    cache = cache_of(out)
    for layer in cache.layers:
        for buffer in layer.own_tensors():
            buffer.fill_(float("nan"))
    _, report = said(llamas, torch.cat([out.sequences, words(2, TURN)], dim=1))
    assert report.prefix_tokens_reused == PROMPT + NEW - 1


def test_a_row_that_fills_half_of_the_store_is_kept_in_part(llamas):
    token = 2 * 2 * 8 * 2 * 4 + 8 + 2 * 4  # bytes: KV of 2 heads of 8 float32, in 2 layers; its id, its embedding
    stock, ours = llamas[0], relay_hf.patch_model(copy.deepcopy(llamas[0]), policy="always", max_store_bytes=40 * token)
    ids, _ = said((stock, ours), words(1, 30))
    assert [len(kept) for kept in ours.relay.prefixes] == [20]
    _, report = said((stock, ours), torch.cat([ids, words(2, TURN)], dim=1))
    assert report.prefix_tokens_reused == 20


def test_changed_weights_drop_what_was_said(llamas):
    stock, ours = (copy.deepcopy(model) for model in llamas)
    ids, _ = said((stock, ours), words(1, PROMPT))
    for model in (stock, ours):
        model.model.layers[0].mlp.up_proj.weight.data.mul_(1.5)
    ids, report = said((stock, ours), torch.cat([ids, words(2, TURN)], dim=1))
    assert report.prefix_tokens_reused == 0
    assert said((stock, ours), torch.cat([ids, words(3, TURN)], dim=1))[1].prefix_tokens_reused > 0


class Meanwhile:
    """A tokenizer for Transformers' own streamer, which asks it between two forwards: what another thread may do."""

    def __init__(self, change):
        self.change = change

    def decode(self, tokens, **options):
        self.change(len(tokens))
        return ""


# The modules were listed when the call began.
CHANGES = {
    "weights": lambda mlp: mlp.up_proj.weight.data.mul_(1.001),
    "a module": lambda mlp: setattr(mlp, "act_fn", torch.nn.Identity().eval()),
    "a hook": lambda mlp: mlp.register_forward_hook(lambda module, inputs, output: output * 0.5),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_model_that_changes_while_it_is_said_keeps_nothing(llamas, what):
    ours, changed = copy.deepcopy(llamas[1]), []

    def change(length):
        if length == PROMPT + 2:  # the prompt is put before its prefill
            changed.append(CHANGES[what](ours.model.layers[0].mlp))

    answer(ours, words(1, PROMPT), streamer=TextStreamer(Meanwhile(change)))
    assert ours.relay.last.relayed
    assert len(changed) == 1
    assert ours.relay.prefixes == ()


def test_ids_that_the_caller_changes_meanwhile_do_not_reach_what_is_kept(llamas):
    """The prompt's tensor is the caller's own, and the loop hands its ids to processors."""
    prompt = words(1, PROMPT)
    given = prompt.clone()

    def scribble(input_ids, scores):
        given.fill_(7)
        input_ids[:, :4] = 7
        return scores

    llamas[1].generate(given, max_new_tokens=3, logits_processor=[scribble])
    (kept,) = llamas[1].relay.prefixes
    assert torch.equal(kept.ids[:PROMPT], prompt[0])


@pytest.mark.parametrize("how", ["crop", "reset"])
def test_a_cache_that_the_caller_changes_meanwhile_is_not_kept(llamas, how):
    cache = relay_hf.RelayCache(llamas[1].config)

    def change(length):
        if length == PROMPT + 3:
            cache.crop(-8) if how == "crop" else cache.reset()

    streamer = TextStreamer(Meanwhile(change))
    llamas[1].generate(words(1, PROMPT), **{CACHE: cache}, max_new_tokens=3, streamer=streamer)
    assert llamas[1].relay.last.relayed
    assert llamas[1].relay.prefixes == ()


def test_weights_that_change_after_the_lookup_keep_nothing(llamas, monkeypatch):
    """What was kept was found under the old ones, and another thread keeps the same start under the new ones."""
    ours = copy.deepcopy(llamas[1])
    ids, _ = said((llamas[0], ours), words(1, PROMPT))
    longer = torch.cat([ids, words(2, TURN)], dim=1)
    touch = ours.relay._hooks.store.touch

    def changing(matches):
        touch(matches)
        monkeypatch.setattr(ours.relay._hooks.store, "touch", touch)
        for layer in ours.model.layers:
            layer.self_attn.v_proj.weight.data.mul_(1.5)
        answer(ours, ids)

    monkeypatch.setattr(ours.relay._hooks.store, "touch", changing)
    answer(ours, longer)
    again = torch.cat([longer, words(3, TURN)], dim=1)
    fresh = copy.deepcopy(ours)
    torch.testing.assert_close(answer(ours, again).logits[0], answer(fresh, again).logits[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["nemotron_h", "zamba2", "kimi_linear"])
def test_answers_whose_states_a_prefill_would_not_leave_are_new(kind):
    """Or of which, with latents, what attention sees is gone."""
    models = pair(kind)
    models[1].relay.clear()
    ids, _ = said(models, words(1, PROMPT), max_new_tokens=24)
    ids, report = said(models, torch.cat([ids, words(2, TURN)], dim=1))
    assert report.prefix_tokens_reused == PROMPT
    _, report = said(models, torch.cat([ids, words(3, TURN)], dim=1))
    assert report.prefix_tokens_reused == ids.shape[1] - NEW


@pytest.mark.parametrize("kind", ["deepseek_v3", "kimi_linear"])
def test_what_is_counted_is_what_is_held(kind):
    """Keys and values that were expanded for attention are parts of larger tensors."""
    ours = pair(kind)[1]
    ours.relay.clear()
    answer(ours, words(1, PROMPT).repeat(2, 1))
    answer(ours, words(2, PROMPT))
    assert held_bytes(ours.relay.prefixes) == ours.relay._hooks.store.tree.nbytes > 0


def test_what_fails_when_a_row_is_kept_does_not_reach_the_caller(llamas, monkeypatch, caplog):
    monkeypatch.setattr(relay_hf.generation.row_recorder.RowRecorder, "keep", lambda self: 1 / 0)
    said(llamas, words(1, PROMPT))
    assert "could not be kept for later ones" in caplog.text
    assert llamas[1].relay.prefixes == ()


def test_a_loop_of_the_callers_is_not_kept(llamas):
    """It may crop the cache and feed other tokens."""

    def loop(model, input_ids, generation_config, logits_processor, stopping_criteria, **kwargs):
        model._prefill(input_ids, generation_config, kwargs)
        return input_ids

    llamas[1].generate(words(1, PROMPT), custom_generate=loop, max_new_tokens=2)
    assert llamas[1].relay.prefixes == ()
    assert llamas[1].relay.last.reason == "one row, in a decoding loop of the caller's"


def test_short_prompts_are_left_to_stock(llamas):
    _, report = said(llamas, words(1, 15))
    assert (report.relayed, report.reason) == (False, "one row of 15 tokens, fewer than min_prefix_length=16")


def test_rope_that_changes_with_length_ends_what_is_kept():
    """An answer that crosses the limit was computed with other frequencies than a prefix of its length would be."""
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0, "original_max_position_embeddings": 26}
    stock = tiny_model("llama", rope_parameters=rope, max_position_embeddings=26)
    ours = relay_hf.patch_model(copy.deepcopy(stock), policy="always")
    _, report = said((stock, ours), words(1, PROMPT))
    assert report.relayed
    assert [len(kept) for kept in ours.relay.prefixes] == [PROMPT]
