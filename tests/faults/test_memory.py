"""Memory that is lacking: in a prefill stock goes on, once, with nothing of the attempt held; later it raises."""

import copy
import gc
import logging

import pytest
import torch
from torch import nn
from transformers import GenerationMixin

import relay_hf
from relay_hf import RelayCache
from relay_hf.cache_utils import PrefixKV
from relay_hf.cache_utils import layer as cache_layer
from relay_hf.cache_utils.layer import RelayLayer
from relay_hf.generation import lay_out
from relay_hf.model.device import is_out_of_memory
from relay_hf.testing import prompts
from tests.support.generating import generate
from tests.support.tiny_models import tiny_model

from .check import Alive
from .inject import KINDS, Fault

INPUTS = prompts(20, (3, 7, 1, 5))
MEMORY = pytest.mark.parametrize("kind", ["memory", "cpu memory"])


def patched_pair(**options):
    stock = tiny_model("llama")
    return stock, relay_hf.patch_model(copy.deepcopy(stock), policy="always", trust=[""], **options)


def held():
    """Caches and kept runs, but those of other tests."""
    gc.collect()
    return Alive(RelayCache, PrefixKV)


def fail_in_forward(patch, model, fault):
    """Let the model's last layer ask the fault, with all caches of the forward in memory."""
    last, call = model.model.layers[-1], nn.Module.__call__  # what its own class has would make it another model

    def ask(self, *args, **kwargs):
        if self is last:
            fault()
        return call(self, *args, **kwargs)

    patch.setattr(nn.Module, "__call__", ask)


@MEMORY
@pytest.mark.parametrize("at", [0, 1], ids=["prefix", "rows"])
@pytest.mark.parametrize("sample", [False, True], ids=["greedy", "samples"])
def test_a_prefill_that_lacks_memory_is_stocks_once_with_a_warning_and_a_reason(kind, at, sample, monkeypatch, caplog):
    stock, model = patched_pair()
    torch.manual_seed(0)
    expected = generate(stock, INPUTS, do_sample=sample)
    fault = Fault(kind, at)
    with monkeypatch.context() as patch:
        fail_in_forward(patch, model, fault)
        torch.manual_seed(0)
        assert torch.equal(generate(model, INPUTS, do_sample=sample), expected)
    assert fault.asked == at + 1 + 12
    report = model.relay.last
    assert not report.relayed
    assert report.reason.startswith("out of memory: a relayed prefill raised ")
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.getMessage() == f"relay_hf: the call goes on as stock: {report.reason}"
    torch.manual_seed(0)
    assert torch.equal(generate(model, INPUTS, do_sample=sample), expected)
    assert model.relay.last.relayed


@MEMORY
def test_all_that_the_attempt_held_is_free_before_stock_begins(kind, monkeypatch):
    """Without the garbage collector, which does not know how much memory a tensor holds."""
    caches = held()
    _, model = patched_pair()
    generate(model, INPUTS)
    model.relay.clear()
    gc.collect()
    assert not caches.since()
    stock, seen = GenerationMixin._prefill, []

    def look(*args, **kwargs):
        seen.extend(caches.since())
        return stock(*args, **kwargs)

    monkeypatch.setattr(GenerationMixin, "_prefill", look)
    fail_in_forward(monkeypatch, model, Fault(kind, 1))
    gc.disable()
    try:
        generate(model, INPUTS)
    finally:
        gc.enable()
    assert "out of memory" in model.relay.last.reason
    assert not seen


@MEMORY
def test_memory_that_stock_lacks_too_is_stocks_own_error(kind, monkeypatch):
    stock, model = patched_pair()
    expected = generate(stock, INPUTS)
    with monkeypatch.context() as patch:
        seen = []

        def fail():
            seen.append(model.relay.last)
            raise KINDS[kind]()

        fail_in_forward(patch, model, fail)
        with pytest.raises(type(KINDS[kind]())):
            generate(model, INPUTS)
        assert len(seen) == 2
    assert not model.relay.prefixes
    assert torch.equal(generate(model, INPUTS), expected)
    assert model.relay.last.relayed


@MEMORY
def test_it_is_not_held_against_the_model(kind, monkeypatch):
    _, model = patched_pair()
    for _ in range(3):
        with monkeypatch.context() as patch:
            fail_in_forward(patch, model, Fault(kind, 0))
            generate(model, INPUTS)
        assert "out of memory" in model.relay.last.reason
    generate(model, INPUTS)
    assert model.relay.last.relayed


@MEMORY
@pytest.mark.parametrize("at", [0, 5], ids=["prefill", "step"])
def test_what_is_kept_makes_way_but_what_is_pinned_stays(kind, at, monkeypatch):
    _, model = patched_pair()
    pinned = model.relay.warm(prompts(30, (1,), seed=5)["input_ids"][0], pin=True)
    generate(model, prompts(20, (3, 2), seed=6))
    assert len(model.relay.prefixes) == 2
    with monkeypatch.context() as patch:
        fail_in_forward(patch, model, Fault(kind, at))
        if at:
            with pytest.raises(type(KINDS[kind]())):
                generate(model, INPUTS)
        else:
            generate(model, INPUTS)
    assert model.relay.prefixes == (pinned,)
    generate(model, INPUTS)
    assert model.relay.last.relayed


@MEMORY
def test_a_buffer_that_can_not_grow_raises_and_lets_go_of_all(kind, monkeypatch):
    caches = held()
    stock, model = patched_pair()
    expected = generate(stock, INPUTS)
    monkeypatch.setattr(lay_out, "free_bytes", lambda device: 0)
    monkeypatch.setattr(cache_layer, "_LEAST_RESERVED", 2)
    grow = RelayLayer._grow
    seen = []

    def asking(fault, self, capacity, *like):
        seen.append(self._buffers is not None)
        fault()
        return grow(self, capacity, *like)

    def run(at):
        seen.clear()
        fault = Fault(kind, at)
        with monkeypatch.context() as patch:
            patch.setattr(RelayLayer, "_grow", lambda *args: asking(fault, *args))
            return generate(model, INPUTS)

    assert torch.equal(run(None), expected)
    growths = [index for index, grows in enumerate(seen) if grows]
    assert len(growths) >= 4
    for at in (growths[0], growths[-1]):
        model.relay.clear()
        with pytest.raises(type(KINDS[kind]())):
            run(at)
        gc.collect()
        assert not caches.since()
        assert torch.equal(run(None), expected)
        assert model.relay.last.relayed


@MEMORY
def test_a_warm_that_lacks_memory_says_so_and_may_be_tried_again(kind, monkeypatch):
    _, model = patched_pair()
    ids = prompts(40, (1,))["input_ids"][0]
    with monkeypatch.context() as patch:
        fail_in_forward(patch, model, Fault(kind, 1))
        with pytest.raises(type(KINDS[kind]()), match="memory"):
            model.relay.warm(ids, prefill_chunk_size=20)
    assert not model.relay.prefixes
    assert len(model.relay.warm(ids)) == 41


def test_what_says_that_memory_is_lacking():
    assert all(is_out_of_memory(KINDS[kind]()) for kind in ("memory", "cpu memory"))
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(raised.value)
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(ValueError("out of memory"))
    assert not is_out_of_memory(RuntimeError("a fault"))


@pytest.mark.parametrize("where", ["prefix", "step"])
def test_memory_that_is_really_lacking(where, monkeypatch):
    """What torch's own allocator raises, when a layer asks for more than any machine has."""
    stock, model = patched_pair()
    expected = generate(stock, INPUTS)
    asked = []

    def ask():
        asked.append(None)
        if len(asked) == (1 if where == "prefix" else 6):
            torch.empty(2**60, dtype=torch.uint8)

    with monkeypatch.context() as patch:
        fail_in_forward(patch, model, ask)
        if where == "prefix":
            assert torch.equal(generate(model, INPUTS), expected)
            assert model.relay.last.reason.startswith("out of memory")
        else:
            with pytest.raises(RuntimeError, match="allocate"):
                generate(model, INPUTS)
    assert torch.equal(generate(model, INPUTS), expected)
    assert model.relay.last.relayed
