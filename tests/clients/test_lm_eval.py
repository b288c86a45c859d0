"""lm-evaluation-harness and its Hugging Face model class, on tasks of local data: which team is a message for?"""

import json

import pytest
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

import relay_hf
from relay_hf import showcase

SHOTS, BATCH = 4, 4
TEAMS = ("orders", "delivery", "returns", "repair", "advice", "payment")
LABELS = "orders delivery returns delivery repair advice payment delivery advice orders returns advice returns advice"


@pytest.fixture
def data(tmp_path):
    """The examples and what is asked, as the two files of a data set."""
    documents = [
        json.dumps({"message": message, "team": team})
        for message, team in zip(showcase.QUESTIONS, LABELS.split(), strict=False)
    ]
    files = {"train": documents[:SHOTS], "test": documents[SHOTS:]}
    for split, lines in files.items():
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return {
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {split: str(tmp_path / f"{split}.jsonl") for split in files},
            "cache_dir": str(tmp_path / "cache"),
        },
        "fewshot_split": "train",
        "test_split": "test",
        "num_fewshot": SHOTS,
        "fewshot_config": {"sampler": "first_n"},
        "doc_to_text": "Message: {{message}}\nTeam:",
    }


@pytest.fixture
def generation(data):
    return {
        **data,
        "task": "team_in_words",
        "output_type": "generate_until",
        "doc_to_target": "{{team}}",
        "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 12, "do_sample": False},
        "metric_list": [{"metric": "chrf", "aggregation": "chrf", "higher_is_better": True}],
    }


@pytest.fixture
def choice(data):
    return {
        **data,
        "task": "team_by_likelihood",
        "output_type": "multiple_choice",
        "doc_to_choice": list(TEAMS),
        "doc_to_target": "team",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }


def evaluate(model, tokenizer, task):
    """The scores of a task, and what the model said to each of its documents."""
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=BATCH)
    manager = TaskManager(include_defaults=False)  # the harness's own tasks take half a minute to read
    found = simple_evaluate(model=harness, tasks=[task], task_manager=manager, log_samples=True, bootstrap_iters=0)
    name = task["task"]
    said = {sample["doc_id"]: (sample["arguments"], sample["resps"]) for sample in found["samples"][name]}
    return found["results"][name], said


def test_few_shot_generation_is_relayed_with_stocks_answers_and_scores(stock, ours, tokenizer, reports, generation):
    expected, answers = evaluate(stock, tokenizer, generation)
    assert evaluate(ours, tokenizer, generation) == (expected, answers)
    assert expected["chrf,none"] > 0
    assert len({str(said) for _, said in answers.values()}) > len(answers) // 2
    shots = min(len(tokenizer(asked[0][0].rsplit("Message:", 1)[0]).input_ids) for asked, _ in answers.values())
    first, *later = reports()
    assert len(later) == -(-len(answers) // BATCH) - 1
    assert (first.relayed, first.rows, first.prefix_tokens_reused) == (True, BATCH, 0)
    assert first.prefix_length >= shots
    for report in later:
        assert report.relayed
        assert report.prefix_tokens_reused >= shots


def right(references, predictions):
    """Whether an answer begins with the team."""
    (team,), (said,) = references, predictions
    return float(said.strip().lower().startswith(team))


def test_a_real_model_has_stocks_scores(generation, reports):
    """The demo's chat model, on real questions: a score that is neither nothing nor all, and the same answers."""
    shown = showcase.load(device="cpu")
    # A penalty for words of the prompt, which the model has by default, would be one for the answers.
    answer = {"until": ["\n"], "max_gen_toks": 4, "do_sample": False, "repetition_penalty": 1.0}
    scored = {"metric": right, "aggregation": "mean", "higher_is_better": True}
    task = generation | {"metric_list": [scored], "generation_kwargs": answer}
    expected, answers = evaluate(shown.model, shown.tokenizer, task)
    assert 0 < expected["right,none"] < 1, answers
    relay_hf.patch_model(shown.model)
    assert evaluate(shown.model, shown.tokenizer, task) == (expected, answers)
    first, *later = reports()
    assert first.relayed
    assert later
    for report in later:
        assert report.relayed
        assert report.prefix_tokens_reused > 100


def test_likelihoods_come_from_plain_forwards_that_are_untouched(stock, ours, tokenizer, reports, choice):
    expected, likelihoods = evaluate(stock, tokenizer, choice)
    ours.relay.warm(likelihoods[0][0][0][0], tokenizer)  # what is kept is none of a forward's business
    assert evaluate(ours, tokenizer, choice) == (expected, likelihoods)
    assert 0 < expected["acc,none"] < 1
    assert len({str(said) for _, said in likelihoods.values()}) == len(likelihoods)
    assert reports() == []
    assert ours.relay.stats().calls == 0
