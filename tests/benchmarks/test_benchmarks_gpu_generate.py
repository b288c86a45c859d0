"""The GPU benchmark's checks of whole calls, on graphs that stand in for CUDA's: what is right passes, what is wrong
fails."""

import json

import pytest
import torch

from benchmarks.gpu import generate, generate_families, generate_memory, generate_next, generate_trouble
from benchmarks.gpu.context import Context, LeftOut
from benchmarks.gpu.generate_calls import Stock, build
from benchmarks.gpu.generate_seen import TIE, rows_apart
from relay_hf.graphs import capture
from relay_hf.graphs.decode_graph import DecodeGraph
from relay_hf.model import device
from relay_hf.model.fingerprint.fingerprint import ModelFingerprint
from relay_hf.prefix import Match
from relay_hf.prefix.radix import RadixTree
from tests.graphs.conftest import graphs
from tests.graphs.cpu_graph import CpuGraph

__all__ = ["graphs"]
CELLS = generate.cells(dry_run=False)


def run(key):
    """A check, as on a device that has graphs."""
    context = Context(dry_run=True)
    context.dry_run = False
    return generate.run(context, CELLS[key])


FAMILIES = (
    "llama, greedy",
    "mistral, sampling",
    "gemma2, beams",
    "deepseek_v3, greedy",
    "bloom, sampling",
    "mamba2, beams",
)
HERE = [key for key in generate_trouble.CELLS if key != "relay-hf doctor"]  # that takes 10 s, in any dry run


@pytest.mark.parametrize("key", [*generate_next.CELLS, *HERE, *FAMILIES])
def test_what_is_right_passes(graphs, key):
    record = run(key)
    assert (record["passed"], record["wrong"]) == (True, [])
    assert [call["rows_that_differ"] for call in record["calls"]] == [0] * len(record["calls"])
    assert record["calls"][0]["relayed"]


def doctor_says(*checks, wrong=()):
    """The output of a doctor: JSON, and beside it what it says of what is wrong."""
    checks = [{"name": name, "passed": passed, "detail": "figures"} for name, passed in checks]
    text = json.dumps({"checks": checks, "wrong": [*wrong], "notes": []}, indent=2)
    return f"{{a warning}}\n{text}\nSomething is wrong: {{it}}.\n" if wrong else text


def test_the_doctor_is_judged_by_its_self_checks_and_not_by_the_versions_of_the_machine():
    fine = ("torch path, float64", True)
    older = generate_trouble.doctors(1, doctor_says(fine, wrong=["torch is 2.11.0"]))
    assert older == {"passed": True, "wrong": [], "said": ["torch is 2.11.0"]}
    assert generate_trouble.doctors(0, doctor_says(fine))["passed"]
    failed = generate_trouble.doctors(1, doctor_says(fine, ("Triton kernels", False), wrong=["Triton kernels"]))
    assert (failed["passed"], failed["wrong"]) == (False, ["Triton kernels: figures"])
    assert generate_trouble.doctors(1, doctor_says(wrong=["a fact"]))["wrong"] == ["no self-check ran: ['a fact']"]
    assert generate_trouble.doctors(1, "Traceback {")["wrong"] == ["exit status 1: Traceback {"]


def nothing(*args, **kwargs):
    """In the place of what is then not done."""


def always(*args):
    return True


def finds_nothing(*args):
    return Match()


@pytest.mark.parametrize(
    ("key", "where", "name", "fault", "why"),
    [
        ("llama, greedy", CpuGraph, "replay", nothing, "cold: 4 of 4 rows are not stock's"),
        ("llama, greedy", capture, "supports", nothing, "cold: no step was replayed: there are no CUDA graphs on cpu"),
        ("other prefixes on one graph", DecodeGraph, "take_up", nothing, "2 graphs are kept, not 1"),
        ("a returned cache, continued", DecodeGraph, "leave", nothing, "second turn: 4 of 4 rows are not stock's"),
        ("a prefix from a file", RadixTree, "match", finds_nothing, "nothing of the file was used"),
        ("weights changed in place", ModelFingerprint, "same", always, "a prefix of other weights was used"),
        ("TF32 switched", device, "arithmetic", nothing, "on: a prefix of other arithmetic was used"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_is_wrong_fails_and_says_so(graphs, monkeypatch, key, where, name, fault, why):
    monkeypatch.setattr(where, name, fault)
    record = run(key)
    assert not record["passed"]
    assert any(why in wrong for wrong in record["wrong"]), record["wrong"]


def test_a_capture_that_leaves_torch_drawing_other_numbers_is_found(graphs, monkeypatch):
    capture = CpuGraph.capture

    def drawing(graph, run):
        try:
            return capture(graph, run)
        except RuntimeError:
            torch.rand(1)
            raise

    monkeypatch.setattr(CpuGraph, "capture", drawing)
    assert run("a capture that fails")["wrong"][0].startswith("sampling, fails: ")


def test_experts_that_are_no_graph_on_a_cpu_are_missed_where_one_is_promised(graphs):
    assert "cold: no step was replayed: two steps of the model differ" in run("mixtral, greedy")["wrong"][0]


@pytest.mark.parametrize("family", ["gpt_oss", "mixtral"])
def test_experts_as_a_gpu_decodes_them_are_replayed(graphs, monkeypatch, family):
    def build_batched(family, context):
        model = build(family, context)
        model.set_experts_implementation("batched_mm")
        return model

    monkeypatch.setattr(generate_families, "build", build_batched)
    assert run(f"{family}, greedy")["passed"]


def test_checks_run_without_tf32_on_one_thread_and_leave_the_settings_as_they_were():
    def settings(context=None):
        products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        return {"products": products, "convolutions": convolutions, "threads": torch.get_num_threads()}

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.set_float32_matmul_precision("high")
    try:
        before = settings()
        assert generate.run(Context(dry_run=True), settings) == {
            "products": "highest",
            "convolutions": False,
            "threads": 1,
        }
        assert settings() == before == {"products": "high", "convolutions": True, "threads": 2}
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision("highest")


def test_a_tie_of_stocks_two_best_tokens_may_go_either_way_and_nothing_else_may():
    stock = Stock(torch.tensor([[7, 7, 1, 2, 3]] * 4), torch.tensor([[1.0, TIE / 2, 1.0]] * 4))
    ours = stock.tokens.clone()
    assert rows_apart(ours, stock) == (0, 0)
    ours[0, 3:] = 9  # where stock's lead is small, and so on
    assert rows_apart(ours, stock) == (1, 1)
    ours[1, 2:] = 9  # from where it is large
    ours[2, 4] = 9
    ours[3, 0] = 9  # in the prompt
    assert rows_apart(ours, stock) == (4, 1)
    assert rows_apart(ours, Stock(stock.tokens)) == (4, 0)
    assert rows_apart(ours[:, :4], stock) == (4, 0)


def test_a_type_that_this_transformers_lacks_is_left_out():
    with pytest.raises(LeftOut, match="no type 'llama17'"):
        build("llama17", Context(dry_run=True))


def test_a_device_is_filled_to_what_is_left_to_it_even_beside_others(monkeypatch):
    free, refused, empty = [5 * 2**30 + 7], [True], torch.empty

    def allocate(size, **options):
        if refused and free[0] < 2**30:
            refused.pop()
            free[0] -= 2**25  # another process was faster
            raise torch.OutOfMemoryError
        free[0] -= size
        return empty(size, **options)

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda where: (free[0], 2**40))
    monkeypatch.setattr(torch, "empty", allocate)
    generate_memory.fill(torch.device("meta"))
    assert not refused
    assert generate_memory._LEFT <= free[0] < generate_memory._LEFT + generate_memory._LEAST
