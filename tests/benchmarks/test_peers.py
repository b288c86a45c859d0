"""relay_hf beside other engines: what they are asked for, the files they read, the turns, and who is absent."""

import dataclasses
import io
import json
import sys
from functools import partial
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from benchmarks.document import markdown, peers
from benchmarks.peers import contenders, process, results, worker
from benchmarks.peers.command import app
from benchmarks.peers.contenders import CONTENDERS
from benchmarks.peers.engines import Setup, gguf_file
from benchmarks.peers.jobs import Job
from benchmarks.peers.process import EngineFailed, EngineProcess
from benchmarks.peers.turns import take_turns
from benchmarks.peers.workloads import WORKLOADS, job_of
from tests.cli.command import Ran


@pytest.fixture
def run():
    return partial(Ran, app=app, name="python -m benchmarks.peers")


def test_a_job_has_each_shared_piece_once_and_gives_back_every_prompt():
    workload = WORKLOADS["smoke-tree"]
    job = job_of(workload)
    assert [[(len(piece.ids), piece.rows) for piece in level] for level in job.levels] == [
        [(48, (0, 1, 2, 3))],
        [(24, (0, 1)), (24, (2, 3))],
        [(8, (row,)) for row in range(4)],
    ]
    assert job.prompts() == workload.prompts(0).tolist()
    assert job.shared == workload.prompts(0)[0, :48].tolist()
    assert job.cells == 48 + 2 * 24 + 4 * (8 + 4)
    assert [job.last_piece(row).start for row in range(4)] == [72] * 4


def test_samples_are_rows_that_share_all_of_their_prompt():
    job = job_of(WORKLOADS["C3"])
    assert [(len(piece.ids), len(piece.rows), piece.kept) for piece in job.pieces] == [(1055, 16, True), (1, 16, False)]
    assert (len(job.prompts()), job.answers, job.top_k) == (1, 16, 50)


def test_without_the_prefix_the_own_tokens_stand_at_the_start():
    job = job_of(WORKLOADS["smoke"])
    own = job.without_prefix()
    assert own.prompts() == [prompt[48:] for prompt in job.prompts()]
    assert own.shared == []


def test_a_job_goes_through_json():
    job = job_of(WORKLOADS["smoke-tree"])
    assert Job.of_json(json.loads(json.dumps(job.as_json()))) == job


def weights_of(model):
    return {name: weight.numpy() for name, weight in model.state_dict().items()}


@pytest.mark.parametrize(("dtype", "near"), [("float32", 0), ("bfloat16", 2**-8), ("float16", 2**-10), ("Q8_0", 0.02)])
def test_a_gguf_file_holds_the_weights_with_heads_in_the_order_of_llamacpp(tmp_path, dtype, near):
    shape = dataclasses.replace(WORKLOADS["smoke"].model, kv_heads=2)
    weights = weights_of(shape.build())
    gguf_file.write(weights, dataclasses.asdict(shape), tmp_path / "model.gguf", dtype)
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    read = {each.name: gguf.dequantize(each.data, each.tensor_type) for each in reader.tensors}
    assert read.keys() == {gguf_file.name_of(name) for name in weights}
    assert reader.get_field("llama.attention.head_count_kv").contents() == 2

    # Neighbours of a head in the file are elements of its two halves in Transformers.
    key = weights["model.layers.0.self_attn.k_proj.weight"]
    order = np.arange(32).reshape(2, 2, 8).swapaxes(1, 2).ravel()
    np.testing.assert_allclose(read["blk.0.attn_k.weight"], key[order], atol=near * abs(key).max())
    down = weights["model.layers.1.mlp.down_proj.weight"]
    np.testing.assert_allclose(read["blk.1.ffn_down.weight"], down, atol=near * abs(down).max())


class Echo:
    """An engine that answers what it is told, and takes no time."""

    def __init__(self, environment, module, setup, log, wrong=(), broken=()):
        if module in broken:
            raise EngineFailed("it does not start")
        self.module, self.shift, self.asked = module, int(module in wrong), []

    def answer(self, job, before):
        self.asked.append((job, before))
        return 1.0, [[(row + self.shift) % 7] * job.new for row in range(job.rows)]

    def about(self):
        return {"version": f"{self.module} 1.0", "instructions": "A = 1 | B = 1"}

    def close(self):
        pass


CHOSEN = {name: CONTENDERS[name] for name in ("stock", "relay", "llamacpp", "ctranslate2")}


def turns(rounds=2, **options):
    return take_turns(WORKLOADS["smoke"], CHOSEN, rounds, 1, lambda text: None, partial(Echo, **options))


def test_contenders_take_turns_and_their_tokens_are_counted():
    found = turns(wrong=("llamacpp",))
    timed = {(each.contender, each.mode): each for each in found.timed}
    assert timed.keys() == {(name, mode) for name, each in CHOSEN.items() for mode in each.modes}
    assert all(each.seconds == [1.0, 1.0] for each in found.timed)
    assert timed["relay", "cold"].equal == timed["relay", "cold"].compared == 2 * 4 * 4
    assert (timed["llamacpp", "cold"].equal, timed["llamacpp", "cold"].compared) == (0, 32)
    assert found.absent == {}


def test_who_does_not_start_is_absent_with_the_reason_and_the_others_run():
    found = turns(broken=("ctranslate2",))
    assert found.absent == {"ctranslate2": "it does not start"}
    assert {each.contender for each in found.timed} == {"stock", "relay", "llamacpp"}


def test_the_turns_become_tables(monkeypatch, tmp_path):
    name = "C1"
    record = results.workload_record(name, WORKLOADS["smoke"], turns(broken=("ctranslate2",), wrong=("llamacpp",)))
    assert results.all_agree(record)
    assert [results.equal_tokens(record, each) for each in ("relay", "llamacpp")] == ["all", "0 of 96"]
    content = {
        **results.contenders_record(),
        "workloads": [record],
        "hardware": {"cpu": "X", "cores": 2, "threads": 2},
        "versions": {"torch": "1", "transformers": "2"},
    }
    (tmp_path / "peers.json").write_text(json.dumps(content))
    for module in (markdown, peers):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    monkeypatch.setattr(peers, "result", markdown.result.__wrapped__)
    monkeypatch.setattr(peers, "source", lambda name: f"{name}.json\n")
    assert "| **relay_hf float32** | 1.00 | 1.00 |  |\n" in peers.brief()
    page = peers.tables()
    assert "| **relay_hf float32** | 1.00 / 1.00 / - |\n" in page
    assert "| llama.cpp F32, flash attention | 0 of 96 |\n" in page
    assert "| **relay_hf** | computed and stored once" in page
    assert "| A, B |" in page
    assert "- CTranslate2 float32, in C1: it does not start.\n" in page
    assert "- relay_hf int4: torchao" in page


def test_before_there_is_a_result_the_tables_say_how_to_get_one(monkeypatch, tmp_path):
    monkeypatch.setattr(peers, "RESULTS", tmp_path)
    assert peers.brief() == peers.tables()
    assert "There is no result yet" in peers.brief()


def test_an_environment_that_is_not_there_is_named_with_what_makes_it(tmp_path):
    setup = Setup(str(tmp_path), {}, 1, 1, 1)
    with pytest.raises(EngineFailed, match=r"no environment \.venv-nowhere; make \.venv-nowhere/\.ready makes it"):
        EngineProcess(".venv-nowhere", "llamacpp", setup, tmp_path / "log")


@pytest.fixture
def here(monkeypatch, tmp_path):
    """This interpreter as an environment."""
    python = tmp_path / "env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\ncd "{process.ROOT}"\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    monkeypatch.chdir(process.ROOT)
    return str(tmp_path / "env")


def test_an_engine_in_a_process_of_its_own_is_stopped_between_its_answers(here, tmp_path):
    workload = WORKLOADS["smoke"]
    model = workload.model.build()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    job = job_of(workload)
    options = {"dtype": "float32", "patched": True}
    setup = Setup(str(tmp_path), dataclasses.asdict(workload.model), 1, job.rows, job.cells, options)
    engine = EngineProcess(here, "transformers", setup, tmp_path / "log")
    try:
        seconds, tokens = engine.answer(job, None)
        status = Path(f"/proc/{engine._process.pid}/stat").read_text().rpartition(")")[2].split()[0]
        assert status == "T"
        assert engine.about()["version"].startswith("torch ")
    finally:
        engine.close()
    assert seconds > 0
    stock = model.generate(torch.tensor(job.prompts()), do_sample=False, max_new_tokens=4, min_new_tokens=4)
    assert tokens == stock[:, 56:].tolist()


def test_an_engine_that_can_not_be_loaded_says_why(here, tmp_path):
    with pytest.raises(
        EngineFailed, match=r"ModuleNotFoundError: No module named 'benchmarks\.peers\.engines\.nothing'"
    ):
        EngineProcess(here, "nothing", Setup(str(tmp_path), {}, 1, 1, 1), tmp_path / "log")


def test_an_exception_of_a_request_is_its_answer_and_the_next_one_is_answered():
    answers = io.StringIO()
    handlers = {"fail": lambda request: 1 / 0, "echo": lambda request: request}
    worker.serve(io.StringIO('{"ask": "fail"}\n{"ask": "echo"}\n'), answers, handlers)
    failed, echoed = map(json.loads, answers.getvalue().splitlines())
    assert failed == {"error": "ZeroDivisionError: division by zero"}
    assert echoed == {"ask": "echo"}


def test_the_command_lists_who_is_absent_and_runs_the_others(run, monkeypatch, tmp_path):
    monkeypatch.setitem(CONTENDERS, "relay", dataclasses.replace(CONTENDERS["relay"], environment=".venv-nowhere"))
    to = tmp_path / "result.json"
    done = run("smoke", "--contenders", "relay", "--rounds", 1, "--output", to)
    assert done.code == 0, done.error
    assert "not there: relay_hf float32: there is no environment .venv-nowhere" in done.out
    found = json.loads(to.read_text())
    assert found["absent"] == contenders.ABSENT
    assert found["workloads"][0]["timed"] == []


def test_the_command_describes_itself_and_refuses_what_is_not_there(run):
    done = run("--help")
    assert done.code == 0
    assert "--contenders" in done.out
    listed = run("--list", "--json").json
    assert listed["workloads"].keys() == WORKLOADS.keys()
    assert listed["contenders"].keys() == CONTENDERS.keys()
    assert "there is no 'C9'" in run("C9").refuses("WORKLOAD")
    assert "there is no 'vllm'" in run("C1", "--contenders", "vllm").refuses("--contenders")
    assert "--list only describes" in run("--list", "--rounds", 2).refuses("--rounds")
