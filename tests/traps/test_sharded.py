"""FSDP: its hooks gather weights before a layer runs. One rank gathers from itself; several wait for each other."""

import pytest
import torch
from torch import distributed, multiprocessing
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

import relay_hf
from relay_hf.testing import prompts
from tests.support.generating import generate
from tests.support.tiny_models import tiny_model

from .compare import assert_untouched, pair

INPUTS = prompts(20, (3, 7, 1, 5))
UP = "model.layers.0.mlp.up_proj"
HOOK = "a forward hook on FSDPLlamaForCausalLM (torch.distributed.fsdp._fully_shard._fsdp_state.FSDPState."
PATIENCE = 100.0  # seconds that a rank may take, of which it needs 5


def join(rank, ranks, file):
    distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=ranks)


def shard(model, ranks, **options):
    mesh = init_device_mesh("cpu", (ranks,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, **options)
    fully_shard(model, mesh=mesh, **options)


@pytest.fixture
def one_rank(tmp_path):
    join(0, 1, tmp_path / "rendezvous")
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("patch_first", [False, True])
@pytest.mark.parametrize("again", [True, False], ids=["weights go after a forward", "weights stay"])
@pytest.mark.usefixtures("one_rank")
def test_on_one_rank_it_is_relayed_and_keeps_nothing(again, patch_first):
    stock, ours = pair("llama") if patch_first else (tiny_model("llama"), tiny_model("llama"))
    shard(ours, 1, reshard_after_forward=again)
    relay_hf.patch_model(ours, policy="always")
    for _ in range(3):
        assert torch.equal(generate(stock, INPUTS), generate(ours, INPUTS))
        report = ours.relay.last
        assert (report.relayed, report.prefix_length, report.prefix_tokens_reused) == (True, 20, 0), report
        assert report.unkept_reason == "FSDP shards the parameters"


@pytest.mark.usefixtures("one_rank")
def test_nothing_is_stale_where_weights_that_stay_are_gathered_anew():
    """The parameter is the same object then, with the same count of changes, and may have the same memory."""
    stock, ours = pair("llama")
    shard(ours, 1, reshard_after_forward=False)
    sharded = [module for module in ours.modules() if isinstance(module, FSDPModule)]
    seen = set()
    for _ in range(3):
        assert torch.equal(generate(stock, INPUTS), generate(ours, INPUTS))
        assert (ours.relay.last.relayed, ours.relay.last.prefix_tokens_reused) == (True, 0), ours.relay.last
        weight = ours.get_submodule(UP).weight
        seen.add((id(weight), weight._version))
        for module in sharded:
            module.reshard()
        with torch.no_grad():
            for model in (stock, ours):
                model.get_submodule(UP).weight.mul_(1.5)
        for module in sharded:
            module.unshard()
    assert len(seen) == 1  # which is why nothing is kept


def of_two(rank, folder):
    """One rank of two: what stock and a sharded model answer to other rows than the other rank has, and the report."""
    torch.set_num_threads(1)
    join(rank, 2, folder / "rendezvous")
    stock, ours = pair("llama")
    shard(ours, 2)
    rows = {name: value[: 4 - 3 * rank] for name, value in INPUTS.items()}
    assert_untouched((stock, ours), rows, HOOK)
    (folder / f"{rank}.txt").write_text(ours.relay.last.reason)
    distributed.destroy_process_group()


def test_several_ranks_are_untouched_and_no_rank_waits_for_another(tmp_path):
    """Each decides for itself: one that relays runs other forwards than one that does not, and both wait for good."""
    ranks = multiprocessing.spawn(of_two, (tmp_path,), nprocs=2, join=False)
    ended = any(ranks.join(timeout=PATIENCE) for _ in range(2))  # each waits until one more rank has ended
    for process in ranks.processes:
        process.kill()
    assert ended
    for rank in range(2):
        assert (tmp_path / f"{rank}.txt").read_text().startswith(HOOK)
