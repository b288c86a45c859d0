"""`relay-hf explain`: what it expects of a call, beside the call."""

import json

import pytest
import torch
from transformers import LlamaConfig

import relay_hf
from relay_hf import showcase

TUTOR = "You are a patient tutor of mathematics for children. Answer in two sentences."
TRIANGLE = f"{TUTOR} A triangle has three sides and three corners, and no side is longer than the other two together."
TREE = [f"{TRIANGLE} How many corners?", f"{TRIANGLE} What is its area?", f"{TUTOR} What is pi?", "Tell me a joke."]


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(TREE) + "\n\n")
    return path


def test_it_expects_what_the_call_then_does(run, folder, prompts):
    found = run("explain", prompts, "--model", folder, "--new-tokens", 8, "--json").json
    shown = showcase.load(folder, device="cpu")
    inputs = shown.tokenizer(TREE, padding=True, return_tensors="pt")
    with relay_hf.patched(shown.model, policy="always"):
        shown.model.generate(**inputs, max_new_tokens=8, min_new_tokens=8)
        report = shown.model.relay.last
    assert report.levels == 2
    assert found["can_share"] is True
    assert found["prompt_tokens"]["relay_hf"] == report.prompt_tokens_computed
    assert found["prompt_tokens"]["stock"] == report.prompt_tokens_computed + report.prompt_tokens_saved
    # At the end the last token is not stored yet; ours has slack for growth on top.
    width, token = inputs.input_ids.shape[1], 2 * 2 * 64 * 4
    assert found["kv_bytes"]["stock"] == 4 * (width + 8) * token
    assert report.kv_bytes_stock == 4 * (width + 7) * token
    shared = sum(run["tokens"] for run in found["shared"])
    own = [
        sum(inputs.attention_mask[row]) - sum(r["tokens"] for r in found["shared"] if row in r["rows"])
        for row in range(4)
    ]
    assert found["kv_bytes"]["relay_hf"] == (shared + 4 * (max(own) + 8)) * token
    assert found["kv_bytes"]["relay_hf"] <= report.kv_bytes + 4 * token


def test_the_tree_has_tokens_rows_bytes_and_both_ends_of_the_text(run, folder, prompts):
    done = run("explain", prompts, "--model", folder)
    assert done.code == 0, done.error
    lines = [line for line in done.out.splitlines() if "shared by" in line or '"' in line]
    assert [line.partition("tokens shared by ")[2].partition(":")[0] for line in lines[::2][:2]] == ["3 rows", "2 rows"]
    assert lines[0].startswith("├── ")
    assert lines[2].startswith("│   ├── ")
    assert '"You are a patient tutor' in lines[1]
    assert "KV " in lines[0]
    assert "1 row of " in done.out
    assert "no weights read" in done.out


def test_each_sample_is_a_row(run, folder, prompts):
    once, four = (run("explain", prompts, "--model", folder, "--json", "--samples", n).json for n in (1, 4))
    assert (once["rows"], four["rows"]) == (4, 16)
    assert four["shared"][0]["rows"] == list(range(12))
    assert four["prompt_tokens"]["stock"] == 4 * once["prompt_tokens"]["stock"]


def test_without_a_file_it_explains_the_demo_and_says_whose_tokenizer(run):
    done = run("explain")
    assert done.code == 0, done.error
    assert "16 rows" in done.out
    assert "built on the spot from the demo's texts" in done.out
    assert 'Relayed by default (policy "auto"), on this machine\'s CPU' in done.out
    assert "the cost model expects to save" in done.out


def test_json_lines_and_standard_input_are_read(run, folder, prompts):
    lines = "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(TREE))
    by_line = run("explain", prompts, "--model", folder, "--json").json
    assert run("explain", "-", "--jsonl", "text", "--model", folder, "--json", stdin=lines).json == by_line


def test_what_does_not_pay_is_said_and_what_cannot_be_shared_too(run, folder, prompts, tmp_path):
    assert "Left to stock by default" in run("explain", prompts, "--model", folder).out
    path = tmp_path / "other.txt"
    path.write_text("Good morning.\nWhere is my order?\n")
    refused = "Nothing is relayed, whatever the policy: the rows share 0 tokens"
    assert refused in run("explain", path, "--model", folder).out
    path.write_text("Good morning.\n")
    assert "One row has no other row to share with" in run("explain", path, "--model", folder).out


def test_a_tokenizer_of_another_model_is_refused(run, folder, prompts, tmp_path):
    LlamaConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2).save_pretrained(tmp_path)
    said = run("explain", prompts, "--model", tmp_path, "--tokenizer", folder).refuses("--tokenizer")
    assert "Give the model's own tokenizer" in said


@pytest.mark.parametrize(
    ("text", "options", "what"),
    [
        (None, (), "No such file or directory"),
        ("\n", (), "has no prompts"),
        ('{"prompt": "a"}\nb\n', ("--jsonl", "prompt"), "is no JSON"),
        ('{"prompt": "a"}\n{"x": 1}\n', ("--jsonl", "prompt"), "no text in the field 'prompt'; it has the fields x"),
    ],
)
def test_prompts_that_cannot_be_read_are_refused_by_line(run, text, options, what, tmp_path):
    path = tmp_path / "prompts"
    if text is not None:
        path.write_text(text)
    said = run("explain", path, *options).refuses("PROMPTS")
    assert what in said
    assert not options or "line 2 of " in said


def test_a_field_without_a_file_is_refused(run):
    assert "relay-hf explain PROMPTS --jsonl FIELD" in run("explain", "--jsonl", "text").refuses("--jsonl")


def test_a_model_without_weights_computes_nothing(run, folder, prompts, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("a forward ran")

    monkeypatch.setattr(torch.nn.Linear, "forward", refuse)
    assert run("explain", prompts, "--model", folder).code == 0
