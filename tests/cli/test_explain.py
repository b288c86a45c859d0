"""`relay-hf explain`: what it expects of a call, beside the call."""

import json

import pytest
import torch
from tokenizers.processors import TemplateProcessing
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
    found = run("explain", prompts, "--model", folder, "--new", 8, "--json").json
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


def test_json_lines_that_are_taken_as_text_are_noted(run, folder, prompts):
    lines = "\n".join(json.dumps({"prompt": line}) for line in prompts.read_text().splitlines())
    note = "looks like a JSON object, and is taken as text. --jsonl FIELD takes the prompt from a field."
    assert note in run("explain", "-", "--model", folder, stdin=lines).error
    assert note not in run("explain", "-", "--model", folder, "--jsonl", "prompt", stdin=lines).error
    assert note not in run("explain", prompts, "--model", folder).error


def test_a_byte_order_mark_is_no_part_of_the_first_prompt(run, folder, prompts, tmp_path):
    """Editors on Windows write one; with it the first prompt would start like no other."""
    model = ("--model", folder, "--json")
    plain = run("explain", prompts, *model).json
    (tmp_path / "text").write_text(prompts.read_text(), encoding="utf-8-sig")
    (tmp_path / "json").write_text("".join(json.dumps({"p": text}) + "\n" for text in TREE), encoding="utf-8-sig")
    assert run("explain", tmp_path / "text", *model).json == plain
    assert run("explain", "-", *model, stdin=(tmp_path / "text").read_text(encoding="utf-8")).json == plain
    assert run("explain", tmp_path / "json", "--jsonl", "p", *model).json == plain


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
        (
            '{"prompt": "a"}\n{"x": 1}\n',
            ("--jsonl", "prompt"),
            "neither text nor chat messages in the field 'prompt'",
        ),
        ('{"prompt": "a"}\n{"prompt": []}\n', ("--jsonl", "prompt"), "A message is an object with role and content"),
        ('{"prompt": "a"}\n{"prompt": ["b"]}\n', ("--jsonl", "prompt"), "A message is an object with role and content"),
        ('{"prompt": "a"}\n{"prompt": [{"role": "user"}]}\n', ("--jsonl", "prompt"), "A message is an object with"),
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
    for option in ("--jsonl", "--separator"):
        said = run("explain", option, "text").refuses(option)
        assert f"without PROMPTS no file is read; leave {option} out" in said


def test_a_separator_between_lines_of_json_is_refused(run, prompts):
    said = run("explain", prompts, "--jsonl", "text", "--separator", "---").refuses("--separator")
    assert "with --jsonl each line is a prompt; leave --separator out" in said


def test_a_model_without_weights_computes_nothing(run, folder, prompts, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("a forward ran")

    monkeypatch.setattr(torch.nn.Linear, "forward", refuse)
    assert run("explain", prompts, "--model", folder).code == 0


LINES = [f"{TRIANGLE}\n\nHow many corners?\u2028How many sides?", f"{TRIANGLE}\n\nWhat is its area?\x0cTell me."]


@pytest.mark.parametrize("separator", ["---", " === next ==="])
def test_prompts_of_several_lines_stand_between_separators_or_in_json(run, folder, tmp_path, separator):
    """Also those with signs at which str.splitlines() would split them."""
    (tmp_path / "json").write_text("".join(json.dumps({"p": text}, ensure_ascii=False) + "\n" for text in LINES))
    (tmp_path / "text").write_text(f"{separator}\r\n" + f"\n\n{separator} \n\n".join(LINES) + "\n")
    model = ("--model", folder, "--json")
    of_json = run("explain", tmp_path / "json", "--jsonl", "p", *model).json
    assert run("explain", tmp_path / "text", "--separator", separator, *model).json == of_json
    tokenizer = showcase.load(folder, device="cpu").tokenizer
    assert of_json["prompt_tokens"]["stock"] == sum(len(tokenizer(text).input_ids) for text in LINES)


def test_an_empty_separator_is_a_blank_line(run, folder, tmp_path):
    (tmp_path / "text").write_text("first\nprompt\n\n\nsecond\n")
    assert run("explain", tmp_path / "text", "--separator", "", "--model", folder, "--json").json["rows"] == 2


CHATS = [
    [{"role": "system", "content": TRIANGLE}, {"role": "user", "content": question}]
    for question in ("How many corners?", "What is its area?")
]


def chats(path, *prompts):
    path.write_text("".join(json.dumps({"id": 1, "messages": prompt}) + "\n" for prompt in prompts))
    return path, "--jsonl", "messages"


def with_template(folder, path, template):
    """The tokenizer of a model, with another chat template and a token that begins each text."""
    tokenizer = showcase.load(folder, device="cpu").tokenizer
    tokenizer.chat_template = template
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<pad> $A", special_tokens=[("<pad>", 0)])
    tokenizer.save_pretrained(path)
    return path


def test_chat_messages_are_rendered_by_the_tokenizers_template_and_nothing_is_added(run, folder, tmp_path):
    tokenizer = showcase.load(folder, device="cpu").tokenizer
    with_template(folder, tmp_path / "words", tokenizer.chat_template)
    asked = (*chats(tmp_path / "chats", *CHATS), "--model", folder, "--json")
    found = run("explain", *asked).json
    ids = [tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False) for chat in CHATS]
    assert found["prompt_tokens"]["stock"] == sum(map(len, ids))
    assert found["shared"][0]["tokens"] == next(n for n, (a, b) in enumerate(zip(*ids, strict=False)) if a != b)
    assert run("explain", *asked, "--tokenizer", tmp_path / "words").json == found
    mixed = chats(tmp_path / "mixed", CHATS[0], TRIANGLE)
    both = run("explain", *mixed, "--model", folder, "--tokenizer", tmp_path / "words", "--json").json
    assert both["prompt_tokens"]["stock"] == len(ids[0]) + 1 + len(tokenizer(TRIANGLE).input_ids)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (None, "it has chat messages, and the tokenizer has no chat template. Give that of a chat model by --model"),
        ("{{ raise_exception('Users speak first') }}", "Users speak first. Prompt 1 does not fit the tokenizer's chat"),
        ("{{ messages[9].role.x }}", "Prompt 1 does not fit the tokenizer's chat template"),
        ("{{ 1 + messages }}", "Prompt 1 does not fit the tokenizer's chat template"),
        ("", "prompt 1 has no tokens. Leave it out"),
    ],
)
def test_messages_that_can_not_be_rendered_are_one_line(run, folder, tmp_path, template, said):
    shown = showcase.load(folder, device="cpu").tokenizer
    shown.chat_template = template
    shown.save_pretrained(tmp_path / "words")
    asked = ("--model", folder, "--tokenizer", tmp_path / "words")
    assert said in run("explain", *chats(tmp_path / "chats", *CHATS), *asked).refuses("PROMPTS")
