"""What is written is what another process, or another model of the same weights, goes on from."""

import mmap
import resource
import signal
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch

import relay_hf
from relay_hf.prefix.file_tensors import named_tensors
from relay_hf.testing import prompts
from tests.support.generating import generate
from tests.support.tiny_models import tiny_model

from .common import IDS, PREFIX, ROWS, assert_served, patched, saved

# Plain; windows and sinks; latents beside what attention sees; layers that reuse another's; attention code of its own;
# recurrent layers that go on by many tokens, one by one, and beside attention.
TYPES = ["llama", "gpt_oss", "deepseek_v3", "gemma3n_text", "bloom", "mamba2", "mamba", "falcon_h1", "qwen3_next"]
ANOTHER_PROCESS = """
import sys, torch
from tests.saving.common import ROWS, assert_served, patched
from tests.support.generating import generate
from tests.support.tiny_models import tiny_model
model = patched()
(prefix,) = model.relay.load(sys.argv[1])
assert_served(model, generate(tiny_model("llama"), ROWS))
print("served")
"""


@pytest.mark.parametrize("model_type", TYPES)
def test_a_model_of_the_same_weights_goes_on_from_the_same_numbers(tmp_path, model_type):
    first, second = saved(tmp_path / "p", model_type), patched(model_type)
    (prefix,) = second.relay.load(tmp_path / "p")
    assert torch.equal(prefix.ids, IDS)
    before, after = (named_tensors(model.relay.prefixes[0].run) for model in (first, second))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert_served(second, generate(tiny_model(model_type), ROWS))


def test_another_process_goes_on_from_it(tmp_path):
    saved(tmp_path / "p")
    command = [sys.executable, "-c", ANOTHER_PROCESS, str(tmp_path / "p")]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        command, cwd=root, capture_output=True, text=True, timeout=300, check=False, env={"PYTHONPATH": str(root)}
    )
    assert done.stdout == "served\n", done.stderr


def test_half_precision_comes_back_bit_for_bit(tmp_path):
    first, second = (patched().to(torch.bfloat16) for _ in range(2))
    first.relay.warm(IDS)
    first.relay.save(tmp_path / "p")
    second.relay.load(tmp_path / "p")
    first.relay.clear()
    assert_served(second, generate(first, ROWS))


def test_a_tree_comes_back_as_a_tree_and_pins_as_pins(tmp_path):
    model, other = patched(), patched()
    ids = prompts(30, (5, 6))["input_ids"]
    model.relay.warm(ids[0])
    model.relay.warm(ids[1], pin=True)
    model.relay.warm(ids[0, :12])
    model.relay.warm(prompts(9, (1,), seed=5)["input_ids"][0])
    written = model.relay.save(tmp_path / "p")
    read = other.relay.load(tmp_path / "p")

    def seen(prefixes):
        return sorted((prefix.ids.tolist(), prefix.pinned, prefix.nbytes) for prefix in prefixes)

    assert seen(written) == seen(read) == seen(model.relay.prefixes) == seen(other.relay.prefixes)
    assert sum(prefix.pinned for prefix in read) == 1
    assert len({len(prefix.path()) for prefix in read}) > 1


def test_a_chosen_prefix_is_written_with_what_it_extends_and_nothing_else(tmp_path):
    model, other = patched(), patched()
    ids = prompts(30, (5, 6))["input_ids"]
    first, second = (model.relay.warm(row) for row in ids)
    assert first not in model.relay.save(tmp_path / "p", [second])
    other.relay.load(tmp_path / "p")
    assert torch.equal(max(other.relay.prefixes, key=len).ids, second.ids)
    assert all(len(prefix) <= 30 or torch.equal(prefix.ids, second.ids) for prefix in other.relay.prefixes)


def test_one_that_has_been_joined_with_what_follows_is_still_there_to_be_written(tmp_path):
    model, other = patched(), patched()
    prefix = model.relay.warm(IDS)
    model.relay.warm(ROWS["input_ids"][1])
    assert prefix not in model.relay.prefixes
    model.relay.save(tmp_path / "p", prefix)
    (loaded,) = other.relay.load(tmp_path / "p")
    assert torch.equal(loaded.ids, IDS)


@pytest.mark.parametrize("model_type", ["llama", "gemma3", "gpt2", "falcon_h1"])
def test_a_model_that_went_through_its_own_files_is_the_same(tmp_path, model_type):
    model = saved(tmp_path / "p", model_type)
    generate(model, ROWS)
    model.save_pretrained(tmp_path / "model")
    other = relay_hf.patch_model(type(model).from_pretrained(tmp_path / "model").eval(), policy="always")
    generate(other, prompts(4, (1,)))
    assert len(other.relay.load(tmp_path / "p")) == 1


def test_a_file_is_for_whom_the_process_makes_files_and_stays_so(tmp_path):
    model = saved(tmp_path / "p")
    (tmp_path / "plain").touch()
    assert (tmp_path / "p").stat().st_mode == (tmp_path / "plain").stat().st_mode
    (tmp_path / "p").chmod(0o604)
    (tmp_path / "link").symlink_to("p")
    model.relay.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "p").stat().st_mode & 0o777 == 0o604


def test_a_prefix_without_its_state_comes_back_without_it(tmp_path):
    model, other = patched("mamba2"), patched("mamba2")
    ids = prompts(30, (6, 6))["input_ids"]
    for row in ids:
        model.relay.warm(row)
    model.relay.save(tmp_path / "p")
    other.relay.load(tmp_path / "p")
    states = sorted((len(prefix), prefix.run.recurrent) for prefix in other.relay.prefixes)
    assert (30, False) in states
    assert states == sorted((len(prefix), prefix.run.recurrent) for prefix in model.relay.prefixes)


def test_loading_joins_what_is_kept_already(tmp_path):
    saved(tmp_path / "p")
    model = patched()
    longer = torch.cat([IDS[:10], torch.tensor([5, 6, 7])])
    model.relay.warm(longer)
    model.relay.load(tmp_path / "p")
    model.relay.load(tmp_path / "p")
    assert {len(prefix) for prefix in model.relay.prefixes} == {10, 13, PREFIX}
    assert_served(model, generate(tiny_model("llama"), ROWS))


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")  # peft's own use of it
def test_adapters_are_part_of_it(tmp_path):
    def adapted():
        base = tiny_model("llama")
        torch.manual_seed(1)
        config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
        return relay_hf.patch_model(peft.get_peft_model(base, config).eval(), policy="always")

    first, second = adapted(), adapted()
    first.get_base_model().relay.warm(IDS)
    first.get_base_model().relay.save(tmp_path / "p")
    relay = second.get_base_model().relay
    with second.disable_adapter(), pytest.raises(relay_hf.PrefixFileError, match="other weights"):
        relay.load(tmp_path / "p")
    relay.load(tmp_path / "p")
    generate(second, ROWS)
    assert relay.last.prefix_tokens_reused == PREFIX


def test_copied_tensors_survive_what_happens_to_the_file_and_mapped_ones_are_the_file(tmp_path):
    expected = generate(saved(tmp_path / "p"), ROWS)
    copied, mapped = patched(), patched()
    copied.relay.load(tmp_path / "p")
    mapped.relay.load(tmp_path / "p", mmap=True)
    assert_served(mapped, expected)
    with open(tmp_path / "p", "r+b") as file, mmap.mmap(file.fileno(), 0) as data:
        start = 8 + int.from_bytes(data[:8], "little")
        data[start:] = bytes(len(data) - start)
    assert_served(copied, expected)
    key = mapped.relay.prefixes[0].run.layers[0].kv.segment.key
    assert not key.any()


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    model, other = saved(tmp_path / "p"), patched()
    model.relay.warm(prompts(200, (1,))["input_ids"][0])
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:  # the disk is full, as far as this process can tell
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
        with pytest.raises(OSError, match=r"large|limit"):
            model.relay.save(tmp_path / "p")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in tmp_path.iterdir()] == ["p"]
    assert len(other.relay.load(tmp_path / "p")) == 1
