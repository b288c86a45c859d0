"""What rows share, what is kept, and for how long."""

import copy
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import relay_hf
from relay_hf.prefix import Prompts
from relay_hf.testing import prompts
from tests.support.generating import CACHE, cache_of, generate
from tests.support.kept_bytes import held_bytes
from tests.support.tiny_models import tiny_model


@pytest.fixture
def model():
    return relay_hf.patch_model(tiny_model("llama"), policy="always")


@st.composite
def batches(draw):
    rows = draw(st.lists(st.lists(st.integers(1, 2), min_size=1, max_size=9), min_size=1, max_size=5))
    shared = draw(st.lists(st.integers(1, 2), max_size=6))
    rows = [shared + row for row in rows]
    width = max(map(len, rows)) + draw(st.integers(0, 2))
    return rows, width


@given(batches())
def test_prompts_are_read_through_their_padding(batch):
    rows, width = batch
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    found = Prompts.of(ids, mask)
    for index, row in enumerate(rows):
        assert found.row(index).tolist() == row
        assert found.row(index, own=2).tolist() == row[:-2]
    assert found.tokens == sum(map(len, rows))


@settings(deadline=None, max_examples=25)
@given(
    prefix=st.integers(1, 40),
    own=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    seed=st.integers(0, 3),
    beams=st.integers(1, 2),
    family=st.sampled_from(["llama", "mistral", "gpt_oss"]),
)
def test_random_batches_are_exact_cold_and_kept(prefix, own, seed, beams, family):
    stock = tiny_model(family, max_position_embeddings=96)
    ours = relay_hf.patch_model(copy.deepcopy(stock), policy="always", min_prefix_length=1)
    inputs = prompts(prefix, own, seed)
    expected = generate(stock, inputs, num_beams=beams)
    reports = []
    for _ in range(2):
        assert torch.equal(generate(ours, inputs, num_beams=beams), expected)
        reports.append(ours.relay.last)
    if len(own) > 1:
        cold, kept = reports
        assert (cold.relayed, kept.relayed, cold.prefix_tokens_reused) == (True, True, 0)
        assert kept.prefix_tokens_reused >= prefix
        assert kept.prompt_tokens_computed + kept.prefix_tokens_reused == cold.prompt_tokens_computed


def test_single_rows_benefit_from_the_second_call_on(model):
    """What a chat server's stream of requests looks like: one system prompt, and each time another question."""
    stock = tiny_model("llama")
    history = []
    for turn in range(3):
        inputs = prompts(30, (6,), seed=0)
        inputs["input_ids"][:, 30:] = torch.arange(10 + 6 * turn, 16 + 6 * turn)
        assert torch.equal(generate(model, inputs), generate(stock, inputs))
        report = model.relay.last
        history.append((report.relayed, report.prefix_length, report.prefix_tokens_reused))
    assert history == [(True, 0, 0), (True, 30, 30), (True, 30, 30)]
    assert model.relay.last.prompt_tokens_saved == 30


def test_the_least_recently_used_prefix_leaves_first(model):
    batch = [prompts(30, (2, 3), seed=seed) for seed in range(3)]
    generate(model, batch[0])
    size = model.relay.prefixes[0].nbytes
    relay_hf.patch_model(model, max_store_bytes=2 * size)
    for index in (0, 1, 0, 2):
        generate(model, batch[index])
    assert model.relay._hooks.store.tree.nbytes == 2 * size
    reused = []
    for index in (0, 1):
        generate(model, batch[index])
        reused.append(model.relay.last.prefix_tokens_reused)
    assert reused == [30, 0]


def test_a_prefix_over_the_budget_is_used_and_not_kept(model):
    relay_hf.patch_model(model, max_store_bytes=100)
    generate(model, prompts(30, (2, 3)))
    assert model.relay.last.relayed
    assert model.relay.prefixes == ()


def test_budget_zero_keeps_nothing(model):
    relay_hf.patch_model(model, max_store_bytes=0)
    for _ in range(2):
        generate(model, prompts(30, (2, 3)))
        assert model.relay.last.relayed
        assert model.relay.last.prefix_tokens_reused == 0


def test_kept_bytes_are_those_that_are_held(model):
    generate(model, prompts(30, (2, 3)))
    (kept,) = model.relay.prefixes
    beside = 8 + 2 * 4  # a token's id, and two elements of its embedding
    assert held_bytes([kept]) == kept.nbytes == 30 * (2 * 2 * 8 * 2 * 4 + beside)


def test_a_longer_prefix_extends_a_kept_one(model):
    generate(model, prompts(30, (2, 3)))
    start = prompts(30, (1,))["input_ids"][0, :30]
    longer = torch.cat([start, torch.arange(40, 70)]).repeat(2, 1)
    inputs = {"input_ids": torch.cat([longer, torch.tensor([[5], [6]])], dim=1)}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    generate(model, inputs)
    assert model.relay.last.prefix_tokens_reused == 30
    assert model.relay.last.reason == "a kept prefix, extended by what the rows share"
    assert [len(kept) for kept in model.relay.prefixes] == [60]


def test_autocast_is_part_of_a_prefix(model):
    inputs = prompts(30, (2, 3))
    generate(model, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        generate(model, inputs)
        assert model.relay.last.relayed
        assert model.relay.last.prefix_tokens_reused == 0
        generate(model, inputs)
        assert model.relay.last.prefix_tokens_reused == 30
    generate(model, inputs)
    assert model.relay.last.prefix_tokens_reused == 30


def test_inference_mode_and_after(model):
    inputs = prompts(30, (2, 3))
    expected = generate(tiny_model("llama"), inputs)
    with torch.inference_mode():
        assert torch.equal(generate(model, inputs), expected)
        out = generate(model, inputs, return_dict_in_generate=True)
    assert torch.equal(generate(model, inputs), expected)
    assert model.relay.last.prefix_tokens_reused == 30
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 13), value=1)
    ids = torch.cat([out.sequences, torch.tensor([[5], [6]])], dim=1)
    again = generate(model, {"input_ids": ids, "attention_mask": mask}, **{CACHE: cache_of(out)})
    assert torch.equal(again, generate(tiny_model("llama"), {"input_ids": ids, "attention_mask": mask}))


def test_warm(model):
    inputs = prompts(30, (2, 3))
    ids = inputs["input_ids"][1, :30]
    assert len(model.relay.warm(ids)) == 30
    assert model.relay.warm(ids.tolist()) is model.relay.prefixes[0]
    assert torch.equal(generate(model, inputs), generate(tiny_model("llama"), inputs))
    assert model.relay.last.prefix_tokens_reused == 30
    assert len(model.relay.warm(torch.cat([ids, torch.tensor([7, 8])])[None])) == 32


def test_a_pinned_prefix_stays(model):
    ids = [prompts(30, (1,), seed=seed)["input_ids"][0, :30] for seed in range(4)]
    relay_hf.patch_model(model, max_store_bytes=2 * model.relay.warm(ids[0]).nbytes)
    pinned = model.relay.warm(ids[0], pin=True)
    assert "30 tokens: 8.0 KiB, pinned" in repr(pinned)
    for seed in (1, 2):
        generate(model, prompts(30, (2, 3), seed=seed))
    generate(model, prompts(30, (2, 3), seed=0))
    assert model.relay.last.prefix_tokens_reused == 30
    model.relay.warm(ids[3], pin=True)
    with pytest.raises(relay_hf.RelayError, match="of which pinned prefixes take a part; raise max_store_bytes"):
        model.relay.warm(ids[1])
    pinned.pinned = False
    model.relay.warm(ids[1])
    generate(model, prompts(30, (2, 3), seed=0))
    assert model.relay.last.prefix_tokens_reused == 0
    model.relay.clear()
    assert model.relay.prefixes == ()


def test_the_start_of_a_kept_prefix_can_be_pinned(model):
    ids = prompts(30, (1,))["input_ids"][0, :30]
    model.relay.warm(ids)
    assert len(model.relay.warm(ids[:20], pin=True)) == 20
    assert [(len(kept), kept.pinned) for kept in model.relay.prefixes] == [(30, False), (20, True)]


def test_warm_text(model):
    class Tokenizer:
        def __call__(self, text):
            return {"input_ids": [ord(character) - 30 for character in text]}

    kept = model.relay.warm("a start of many a prompt", Tokenizer())
    assert kept.ids[0] == ord("a") - 30


@pytest.mark.parametrize(
    ("thing", "error", "words"),
    [
        ("text", ValueError, "tokenizer is needed"),
        ([], ValueError, "at least one integer token id"),
        ([1.5], ValueError, "at least one integer token id"),
        (object(), TypeError, "must be text or token ids; got object"),
        ([[1, 2], [3, 4]], ValueError, r"got \(2, 2\)"),
        ([3, 500], ValueError, "from 0 to 96, the model's vocabulary; got 500"),
        ([-1], ValueError, "got -1"),
        ([5] * 600, ValueError, "the model's context of 512 tokens; got 600"),
    ],
)
def test_warm_refuses_bad_input(model, thing, error, words):
    with pytest.raises(error, match=words):
        model.relay.warm(thing)


def test_warm_says_why_a_prefix_can_not_be_kept(model):
    model.train()
    with pytest.raises(relay_hf.RelayError, match="the model is in training mode"):
        model.relay.warm([5] * 30)
    model.eval()
    relay_hf.patch_model(model, max_store_bytes=10)
    with pytest.raises(relay_hf.RelayError, match="raise max_store_bytes"):
        model.relay.warm([5] * 30)


def test_explain_says_what_generate_does_and_runs_nothing(model):
    inputs = prompts(30, (2, 5))
    calls = []
    handle = model.register_forward_pre_hook(lambda *args: calls.append(1))
    report = model.relay.explain(**inputs)
    assert "a forward hook on LlamaForCausalLM" in report.reason
    handle.remove()
    report = model.relay.explain(**inputs)
    assert not calls
    assert model.relay.last is None
    generate(model, inputs)
    last = model.relay.last
    assert (report.relayed, report.reason, report.prefix_length) == (last.relayed, last.reason, last.prefix_length)
    assert report.prompt_tokens_computed == last.prompt_tokens_computed == 37
    assert report.prompt_tokens_saved == last.prompt_tokens_saved == 30
    assert model.relay.explain(inputs["input_ids"].tolist(), inputs["attention_mask"]).prefix_tokens_reused == 30
    with pytest.raises(ValueError, match="got 500"):
        model.relay.explain(torch.tensor([[500, 3], [4, 5]]))


def test_explain_counts_on_as_many_new_tokens_as_generate_would(model):
    """Under policy 'auto' the gate looks at them."""
    relay_hf.patch_model(model, policy="auto")
    inputs = prompts(30, (2, 5))
    model.generation_config.max_new_tokens = 12
    generate(model, inputs)
    assert "policy 'auto'" in model.relay.last.reason
    assert model.relay.explain(**inputs).reason == model.relay.last.reason


def test_holes_do_not_count_as_tokens(model):
    inputs = prompts(30, (6, 9))
    inputs["attention_mask"][1, -4:-2] = 0
    generate(model, inputs)
    assert model.relay.last.relayed
    assert model.relay.last.prompt_tokens_computed == 30 + 6 + 7


def test_single_rows_in_threads(model):
    """Lookups, recent prompts and evictions, from several threads at once."""
    relay_hf.patch_model(model, max_store_bytes=3 * 30 * 2 * 2 * 8 * 2 * 4)
    stock = tiny_model("llama")
    batches = [prompts(30, (4,), seed=seed) for seed in range(6)]
    expected = [generate(stock, batch) for batch in batches]
    wrong = []

    def work(offset):
        for turn in range(24):
            index = (offset + turn) % 6
            if not torch.equal(generate(model, batches[index]), expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(offset,)) for offset in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert model.relay.stats().calls == 96
    assert model.relay.stats().prefix_tokens_reused > 0
    assert model.relay._hooks.findings.refusal is None


def test_stats_add_up(model):
    generate(model, prompts(30, (2, 5)))
    generate(model, prompts(30, (2, 5)))
    generate(model, prompts(3, (2, 5)))
    stats = model.relay.stats()
    assert (stats.calls, stats.relayed_calls) == (3, 2)
    assert (stats.prefix_tokens_reused, stats.prompt_tokens_computed, stats.prompt_tokens_saved) == (30, 57, 90)


def test_the_report_reads_as_one_line_and_is_logged(model, caplog):
    with caplog.at_level("INFO", logger="relay_hf"):
        generate(model, prompts(30, (2, 5)))
    text = repr(model.relay.last)
    assert "\n" not in text
    assert "2 rows share 30 tokens" in text
    assert text in caplog.text


def test_tokens_through_the_model_are_those_of_the_report(model):
    """Counted at the embedding: the prefix once, then every row's own columns."""
    widths = []
    relay_hf.patch_model(model, trust=["model.embed_tokens"])
    embed = model.model.embed_tokens.forward
    model.model.embed_tokens.forward = lambda ids: widths.append(tuple(ids.shape)) or embed(ids)
    generate(model, prompts(30, (2, 5)))
    assert widths[:2] == [(1, 30), (2, 5)]
    assert set(widths[2:]) == {(2, 1)}
