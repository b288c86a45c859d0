"""The model and the texts that demo, notebooks and examples show things on."""

import copy
import dataclasses

import pytest
import torch

import relay_hf
from relay_hf import showcase


@pytest.fixture(scope="module")
def shown():
    return showcase.load("random", size="tiny")


def new_tokens(shown, chats, **how):
    inputs = shown.inputs(chats)
    tokens = shown.model.generate(**inputs, max_new_tokens=8, do_sample=False, **how)
    return tokens[:, inputs.input_ids.shape[1] :]


def test_each_prompt_gets_an_answer_of_its_own_in_words_of_the_tokenizer(shown):
    """Otherwise "same tokens" would say little."""
    tokens = new_tokens(shown, showcase.document_chats(8))
    assert len({tuple(row) for row in tokens.tolist()}) == len(tokens)
    assert tokens.max() < len(shown.tokenizer)


def test_the_model_is_the_same_at_every_call_and_leaves_the_random_state_alone(shown):
    state = torch.get_rng_state()
    again = showcase.load("random", size="tiny")
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(shown.model.parameters(), again.model.parameters(), strict=True))


def test_the_description_says_that_weights_are_random(shown):
    assert "random weights" in shown.about
    assert "noise" in shown.about


def test_an_unknown_size_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="size must be one of 'tiny', 'mini', 'small', 'base'; got 'huge'"):
        showcase.load("random", size="huge")


def test_a_size_of_another_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=f"size is of the model that is built, 'random'; got 'tiny' for {tmp_path}"):
        showcase.load(tmp_path, size="tiny")


def test_a_model_from_a_folder_gets_padding_on_the_left(shown, tmp_path):
    shown.model.save_pretrained(tmp_path)
    shown.tokenizer.save_pretrained(tmp_path)
    loaded = showcase.load(tmp_path)
    assert loaded.tokenizer.padding_side == "left"
    assert str(tmp_path) in loaded.about
    chats = showcase.document_chats(2)
    assert torch.equal(new_tokens(loaded, chats), new_tokens(shown, chats))


def test_document_chats_share_instructions_and_then_documents(shown):
    inputs = shown.inputs(showcase.document_chats(3, 4))
    with relay_hf.patched(shown.model, policy="always"):
        tree = shown.model.relay.explain(inputs.input_ids, inputs.attention_mask).tree.splitlines()
    assert [line.split(", ")[1] for line in tree if not line.startswith("    ")] == [
        "12 rows (0-11)",
        "4 rows (0-3)",
        "4 rows (4-7)",
        "4 rows (8-11)",
    ]


def test_a_model_without_a_chat_template_gets_the_texts_one_behind_the_other(shown):
    plain = dataclasses.replace(shown, tokenizer=copy.deepcopy(shown.tokenizer))
    plain.tokenizer.chat_template = None
    ids = plain.inputs(showcase.support_chats(1)).input_ids[0]
    assert plain.tokenizer.decode(ids) == showcase.support_prompts(1)[0]


def test_the_options_show_the_name_of_a_real_model(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["script.py", "--help"])
    with pytest.raises(SystemExit):
        showcase.options("What the script does.")
    said = "".join(capsys.readouterr().out.split())
    assert "--model" in said
    assert "SmolLM2-135M-Instruct" in said
    assert "random" in said


def test_a_size_without_the_random_model_is_a_line_of_usage(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["script.py", "--size", "tiny"])
    with pytest.raises(SystemExit, match="2"):
        showcase.options("What the script does.")
    assert "argument --size: it is of --model random, and --model is SmolLM2" in capsys.readouterr().err


def test_the_verdict_fails_on_other_outputs_and_on_calls_that_were_not_relayed(shown, capsys):
    chats = showcase.support_chats(4)
    with relay_hf.patched(shown.model, policy="always"):
        new_tokens(shown, chats)
        assert showcase.verdict(shown.model, same=True) == 0
        assert showcase.verdict(shown.model, same=False) == 1
        new_tokens(shown, chats, use_cache=False)
        assert showcase.verdict(shown.model, same=True) == 1
    said = capsys.readouterr().out
    assert "same outputs as stock: NO" in said
    assert "calls relayed: 1 of 2" in said
