"""`relay-hf bench PROMPTS`: a user's own prompts in the place of random tokens."""

import json

import pytest
import torch
from transformers import LlamaConfig

from benchmarks.cpu.workloads import WORKLOADS
from relay_hf import showcase
from relay_hf.cli.benchmark import contenders
from relay_hf.cli.benchmark.file_bench import FileBench
from relay_hf.cli.benchmark.timed_model import NamedModel
from relay_hf.cli.benchmark.workload import FileWorkload

TUTOR = "You are a patient tutor of mathematics for children. Answer in two sentences."
CIRCLE = f"{TUTOR} A circle has no corners, and each of its points is as far from the middle as the others."
TREE = [f"{CIRCLE} What is pi?", f"{CIRCLE} What is the area of a circle?", f"{TUTOR} Hi."]
QUICK = ("--new", 3, "--rounds", 1, "--policy", "always")
ALL = ("--contenders", ",".join(contenders.CONTENDERS))


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(TREE))
    return path


@pytest.fixture
def ids(folder):
    """Token ids of each prompt."""
    tokenizer = showcase.load(folder, device="cpu").tokenizer
    return [tokenizer(text).input_ids for text in TREE]


def common(rows):
    """Tokens that all rows start with."""
    return next(n for n, column in enumerate(zip(*rows, strict=False)) if len({*column}) > 1)


def test_every_contender_runs_the_prompts_of_a_file(run, folder, prompts, ids):
    found = run("bench", prompts, *QUICK, *ALL, "--model", folder, "--json").json
    (record,) = found["workloads"]
    prefix, lengths = common(ids), [len(row) for row in ids]
    assert record["workload"] == {
        "model": {"name": str(folder), "vocab": 32000},
        "rows": 3,
        "prefix": prefix,
        "own": max(lengths) - prefix,
        "least_own": min(lengths) - prefix,
        "new": 3,
        "source": str(prompts),
    }
    assert [each["contender"] for each in record["contenders"]] == list(contenders.CONTENDERS)
    assert [each["same_tokens"] for each in record["contenders"]] == [True] * len(contenders.CONTENDERS)
    cold, kept = (each["report"] for each in record["contenders"][-2:])
    shared = common(ids[:2])  # the prefix, and what two of them share behind it
    own = sum(lengths) - 2 * shared - prefix
    assert (cold["levels"], cold["prefix_tokens_reused"], cold["prompt_tokens_computed"]) == (2, 0, shared + own)
    assert (kept["prefix_tokens_reused"], kept["prompt_tokens_computed"]) == (shared, own)


def test_the_stock_contender_computes_what_generate_does(folder, ids):
    shown = showcase.load(folder, device="cpu")
    shown.model.generation_config.pad_token_id = 1  # of 0, which pads here, generate() would infer the mask
    rows = [torch.tensor(row) for row in ids]
    bench = FileBench(FileWorkload.of("-", NamedModel.of(folder), rows, 5), "always", rows, shown.model)
    inputs = shown.tokenizer(TREE, padding=True, return_tensors="pt")
    expected = shown.model.generate(**inputs, max_new_tokens=5, min_new_tokens=5)[:, inputs.input_ids.shape[1] :]
    for name in ("stock", "prefix-copied"):
        assert torch.equal(contenders.CONTENDERS[name].prepare(bench)(), expected)


def test_the_table_names_the_file_and_the_spans(run, folder, prompts, ids):
    done = run("bench", prompts, *QUICK, "--model", folder)
    assert done.code == 0, done.error
    prefix, lengths = common(ids), [len(row) for row in ids]
    span = f"{min(lengths) - prefix} to {max(lengths) - prefix}"
    assert f"\nprompts: {prompts}\n" in done.out
    assert f"3 prompts of {prefix} shared + {span} own tokens, 3 new" in " ".join(done.out.split())
    assert "tokens of stock, relay-cold, relay-kept: identical" in done.out
    assert TUTOR not in done.out


def test_standard_input_separators_and_chats_are_read_as_explain_reads_them(run, folder):
    asked = ("bench", "-", *QUICK, "--model", folder, "--contenders", "stock", "--json")
    blocks = run(*asked, "--separator", "END", stdin="\nEND\n".join(TREE)).json["workloads"][0]["workload"]
    assert run(*asked, stdin="\n".join(TREE)).json["workloads"][0]["workload"] == blocks
    chats = [[{"role": "user", "content": text}] for text in TREE]
    lines = "".join(json.dumps({"messages": chat}) + "\n" for chat in chats)
    found = run(*asked, "--jsonl", "messages", stdin=lines).json["workloads"][0]["workload"]
    tokenizer = showcase.load(folder, device="cpu").tokenizer
    rows = [tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False) for chat in chats]
    assert (found["prefix"], found["prefix"] + found["own"]) == (common(rows), max(map(len, rows)))


def test_of_a_single_prompt_nobody_knows_what_is_kept(run, folder):
    asked = ("bench", "-", *QUICK, "--model", folder)
    found = run(*asked, *ALL, "--json", stdin=TUTOR).json["workloads"][0]
    assert (found["workload"]["prefix"], found["workload"]["own"]) == (0, found["workload"]["least_own"])
    measured = [each["contender"] for each in found["contenders"]]
    assert measured == ["stock", "static-cache", "relay-cold"]
    said = run(*asked, "--contenders", "relay-kept", stdin=TUTOR).refuses("--contenders")
    assert "none of relay-kept says anything of prompts that share nothing" in said


def test_equal_prompts_share_all_but_their_last_token():
    rows = [torch.tensor([1, 2, 3])] * 2
    workload = FileWorkload.of("-", None, rows, 1)
    assert (workload.prefix, workload.own, workload.least_own) == (2, 1, 1)


@pytest.mark.parametrize("option", ["--rows", "--prefix", "--own"])
def test_a_shape_is_refused_beside_prompts(run, prompts, option):
    said = run("bench", prompts, option, 16).refuses(option)
    assert f"PROMPTS have rows and tokens of their own; leave {option} out" in said


@pytest.mark.parametrize("option", ["--jsonl", "--separator", "--tokenizer"])
def test_what_reads_prompts_is_refused_without_them(run, option):
    assert f"leave {option} out" in run("bench", option, "x").refuses(option)


@pytest.mark.parametrize("name", WORKLOADS)
def test_the_name_of_a_workload_leads_to_the_benchmark_that_has_it(run, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert f"make bench BENCH={name}" in run("bench", name).refuses("PROMPTS")


def test_another_file_that_is_not_there_is_just_that(run):
    said = run("bench", "absent.txt").refuses("PROMPTS")
    assert "No such file or directory: absent.txt. Give a text file with a prompt in each line" in said


def test_tokens_that_the_model_does_not_have_are_refused(run, folder, tmp_path, prompts):
    LlamaConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2).save_pretrained(tmp_path)
    said = run("bench", prompts, "--model", tmp_path, "--tokenizer", folder).refuses("--tokenizer")
    assert "has no embedding in a model of 20 tokens. Give the model's own tokenizer" in said
