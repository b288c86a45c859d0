"""Unpatching takes away all that patching added: from the model, from its configuration, from the process."""

import copy
import gc
import json
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LogitsProcessor, LogitsProcessorList

import relay_hf
from relay_hf.testing import prompts
from tests.support.generating import generate
from tests.support.model_snapshot import differences, snapshot
from tests.support.process_state import COUNTED, REGISTERED, ProcessState
from tests.support.tiny_models import tiny_model

INPUTS = prompts(20, (3, 7, 1, 5))


class Stop(LogitsProcessor):
    """Raises in the middle of generate(), after so many tokens."""

    def __init__(self, error, after):
        self.error, self.after = error, after

    def __call__(self, input_ids, scores):
        self.after -= 1
        if self.after < 0:
            raise self.error
        return scores


def test_unpatch_leaves_the_model_as_it_was():
    """Those of the matrix of models are, too: tests/models."""
    model = tiny_model("llama")
    before = snapshot(model)
    relay_hf.patch_model(model, policy="always")
    assert differences(before, snapshot(model))
    generate(model, INPUTS)
    assert model.relay.last.relayed
    assert relay_hf.unpatch_model(model) is model
    assert differences(before, snapshot(model)) == {}
    relay_hf.unpatch_model(model)  # a second time, and on a model that never was patched: nothing to do
    assert differences(before, snapshot(model)) == {}


@pytest.mark.parametrize("after", [0, 3])
@pytest.mark.parametrize("error", [ValueError("processor"), KeyboardInterrupt()])
def test_patched_is_undone_after_an_exception_in_generate(error, after):
    model = tiny_model("llama")
    before = snapshot(model)
    with pytest.raises(type(error)), relay_hf.patched(model, policy="always"):
        generate(model, INPUTS, logits_processor=LogitsProcessorList([Stop(error, after)]))
    assert differences(before, snapshot(model)) == {}


@pytest.mark.parametrize("part", ["model.layers.1.mlp", "model.embed_tokens", "lm_head"])
def test_patched_is_undone_after_an_exception_in_a_forward(part):
    model = tiny_model("llama")
    before = snapshot(model)
    module = model.get_submodule(part)
    module.forward = lambda *args, **kwargs: 1 / 0
    with pytest.raises(ZeroDivisionError), relay_hf.patched(model, policy="always"):
        generate(model, INPUTS)
    del module.forward
    assert differences(before, snapshot(model)) == {}


def test_a_wrapper_put_on_later_survives_the_undoing():
    model = relay_hf.patch_model(tiny_model("llama"), policy="always")
    ours = model.generate

    def wrapper(*args, **kwargs):
        return ours(*args, **kwargs)

    model.generate = wrapper
    expected = generate(model, INPUTS)
    relay_hf.unpatch_model(model)
    assert model.generate is wrapper
    assert torch.equal(generate(model, INPUTS), expected)


def test_methods_of_the_users_own_come_back_where_they_were():
    """In the place and the order in which they stood."""
    model = tiny_model("llama")
    model.generate = model.generate
    model.train = model.train
    model.note = "set later than these"
    before = snapshot(model)
    relay_hf.patch_model(model, policy="always")
    generate(model, INPUTS)
    assert model.relay.last.relayed
    relay_hf.unpatch_model(model)
    assert differences(before, snapshot(model)) == {}


def test_one_of_two_models_is_unpatched_and_the_other_is_served():
    """Two that share their configuration."""
    config = tiny_model("llama").config
    one, two = (AutoModelForCausalLM.from_config(config).eval() for _ in range(2))
    before, tokens = snapshot(one), generate(two, INPUTS)
    for model in (one, two):
        relay_hf.patch_model(model, policy="always")
        generate(model, INPUTS)
    relay_hf.unpatch_model(one)
    assert differences(before, snapshot(one)) == {}
    assert torch.equal(generate(two, INPUTS), tokens)
    assert two.relay.last.relayed
    assert two.relay.last.prefix_tokens_reused == 20
    relay_hf.unpatch_model(two)
    assert differences(before, snapshot(one)) == {}


def test_a_handle_that_outlives_its_patch_says_so(tmp_path):
    model = relay_hf.patch_model(tiny_model("llama"), policy="always")
    handle, inputs = model.relay, prompts(40, (3, 5))
    model.generate(**inputs, max_new_tokens=2)
    relay_hf.unpatch_model(model)
    for use in (
        lambda: handle.explain(**inputs),
        lambda: handle.warm(inputs["input_ids"][0]),
        lambda: handle.save(tmp_path / "prefixes"),
        lambda: handle.load(tmp_path / "prefixes"),
        lambda: setattr(handle, "config", relay_hf.RelayConfig()),
    ):
        with pytest.raises(relay_hf.RelayError, match=r"this handle is not patched any more\. Patch it again"):
            use()
    assert handle.stats().calls == 1  # what it has seen can be read
    relay_hf.patch_model(model, policy="always")
    assert model.relay.explain(**inputs, max_new_tokens=2).relayed


def test_unpatching_lets_the_handle_go():
    """And with it the memory of what it kept: tests/leaks."""
    model = relay_hf.patch_model(tiny_model("llama"), policy="always")
    generate(model, INPUTS)
    relay = weakref.ref(model.relay)
    relay_hf.unpatch_model(model)
    gc.collect()
    assert relay() is None


def test_a_hundred_patches_leave_no_more_than_one():
    model = tiny_model("llama")

    def cycle():
        relay_hf.patch_model(model, policy="always")
        model.generate(**INPUTS, max_new_tokens=2)
        assert model.relay.last.relayed
        relay_hf.unpatch_model(model)

    before = snapshot(model)
    for _ in range(3):
        cycle()
    around = ProcessState()
    gc.collect()
    objects = len(gc.get_objects())
    for _ in range(100):
        cycle()
    gc.collect()
    assert len(gc.get_objects()) - objects < 50, "patches leave objects"
    assert differences(before, snapshot(model)) == {}
    assert set(around.changes()) == {COUNTED}


ALONE = """
import json, sys
sys.path.insert(0, sys.argv[1])
import torch
from relay_hf.testing import prompts
from tests.support.tiny_models import tiny_model
from tests.support.process_state import ProcessState

assert "relay_hf.patching" not in sys.modules
model, inputs = tiny_model("llama"), prompts(20, (3, 5))
model.generate(**inputs, max_new_tokens=3)
before = ProcessState()
import relay_hf.patching
imported = sorted(before.changes())
before = ProcessState()
relay_hf.patch_model(model, policy="always")
model.generate(**inputs, max_new_tokens=3)
assert model.relay.last.relayed
relay_hf.unpatch_model(model)
print(json.dumps([imported, sorted(before.changes())]))
"""


def test_the_registered_names_are_all_that_the_first_patch_of_a_process_leaves():
    command = [sys.executable, "-W", "ignore", "-c", ALONE, str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    imported, patched = json.loads(done.stdout)
    assert set(patched) == {*REGISTERED, COUNTED}
    # Beside these the operators of torch.ops.relay_hf, from the import on.
    assert [change for change in imported if "relay_hf" not in change] == []


def test_save_pretrained_writes_what_it_would_for_the_model_without_the_patch(tmp_path):
    model = tiny_model("llama")
    generate(model, INPUTS)
    model.save_pretrained(tmp_path / "stock")
    relay_hf.patch_model(model, policy="always")
    generate(model, INPUTS)
    model.save_pretrained(tmp_path / "patched")
    stock, patched = (
        {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("stock", "patched")
    )
    assert {"config.json", "model.safetensors"} <= stock.keys()
    assert patched == stock


def test_a_copy_of_a_patched_model_is_unpatched_to_what_a_copy_of_stock_is():
    stock = tiny_model("llama")
    twin = copy.deepcopy(relay_hf.patch_model(copy.deepcopy(stock), policy="always"))
    generate(twin, INPUTS)
    assert twin.relay.last.relayed
    relay_hf.unpatch_model(twin)
    theirs, ours = snapshot(copy.deepcopy(stock)), snapshot(twin)
    assert list(theirs) == list(ours)
    for name in ("state dict", "config as JSON", "generation_config as JSON", "attention"):
        assert theirs[name] == ours[name]
