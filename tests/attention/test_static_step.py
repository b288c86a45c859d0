"""The static decode path: every step issues the same operations, on the same storages, and waits for nothing."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

import relay_hf
from relay_hf.attention import layer
from relay_hf.attention.static_step import StaticStep
from relay_hf.cache_utils import RelayCache, RelayLayer
from relay_hf.generation import lay_out
from relay_hf.kernels.torch.plan_views import levels_of
from relay_hf.testing import prompts
from tests.support.generating import CACHE, cache_of, generate
from tests.support.tiny_models import tiny_model

FAMILIES = ("llama", "qwen3", "mistral", "gemma2", "gpt_oss")
RAGGED = (3, 7, 1, 5)
# Operations and methods that read a tensor on the host: on a GPU each waits for all work before it.
WAITING = {"aten._local_scalar_dense.default", "aten.nonzero.default", "aten.is_nonzero.default", "aten.equal.default"}
READING = {"tolist", "item", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "nonzero"}


@dataclass
class Step:
    """One forward: what it did, by name, shapes, strides and numbers; and where what it uses lies."""

    operations: list[tuple] = field(default_factory=list)
    reads: list[str] = field(default_factory=list)
    storages: dict[str, Any] = field(default_factory=dict)


def described(argument: Any) -> Any:
    if isinstance(argument, torch.Tensor):
        return (tuple(argument.shape), argument.stride(), argument.storage_offset(), argument.dtype)
    if isinstance(argument, list | tuple):
        return tuple(described(part) for part in argument)
    return repr(argument)


class Operations(TorchDispatchMode):
    def __init__(self, step: Step) -> None:
        super().__init__()
        self.step = step

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        named = tuple((name, described(value)) for name, value in (kwargs or {}).items())
        self.step.operations.append((str(operation), described(args), named))
        return operation(*args, **(kwargs or {}))


class Reads(TorchFunctionMode):
    def __init__(self, step: Step) -> None:
        super().__init__()
        self.step = step

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__name__", "") in READING:
            self.step.reads.append(function.__name__)
        return function(*args, **(kwargs or {}))


@pytest.fixture
def recorded(monkeypatch):
    """Records the forwards of a model; attention is one operation, whose inside is not looked into."""
    steps: list[Step] = []
    attend = layer.attend

    def opaque(plan, query, segments, key, value, **how):
        step = steps[-1]
        given = [described(each) for each in (query, key, value, *(s.key for s in segments), plan.own_length)]
        step.operations.append(("relay_attention", tuple(given), tuple(how.items())))
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            step.storages["own_length"] = plan.own_length.data_ptr() if plan.own_length is not None else None
            step.storages["work"] = [id(level.rows) for level in levels_of(plan, segments, None, query)]
            return attend(plan, query, segments, key, value, **how)

    monkeypatch.setattr(layer, "attend", opaque)

    def record(model):
        forward = model.forward

        @functools.wraps(forward)
        def recording(*args, **kwargs):
            step = Step()
            steps.append(step)
            with Operations(step), Reads(step):
                outputs = forward(*args, **kwargs)
            cache = cache_of(outputs)
            if isinstance(cache, RelayCache):
                step.storages["kv"] = [t.data_ptr() for layer in cache.layers for t in layer.own_tensors()]
            return outputs

        model.forward = recording
        return steps

    return record


@pytest.mark.parametrize(("free", "room"), [(2**40, 700), (0, 512)])
def test_there_is_room_from_the_start_for_what_the_call_may_make_if_there_is_memory(free, room, monkeypatch):
    monkeypatch.setattr(lay_out, "free_bytes", lambda device: free)
    model = relay_hf.patch_model(tiny_model("llama"), policy="always", trust=["*"])
    stop = [lambda ids, scores: torch.full((len(ids),), ids.shape[1] >= 30)]
    options = {"max_new_tokens": 700, "min_new_tokens": 0, "stopping_criteria": stop, "return_dict_in_generate": True}
    cache = cache_of(generate(model, prompts(20, RAGGED), **options))
    assert {layer.capacity for layer in cache.layers} == {7 + room}


def test_a_second_turn_makes_room_once(monkeypatch):
    model = relay_hf.patch_model(tiny_model("llama"), policy="always", trust=["*"])
    inputs = prompts(20, RAGGED)
    first = generate(model, inputs, return_dict_in_generate=True)
    turn = torch.cat([first.sequences, first.sequences[:, 5:9]], dim=1)
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, turn.shape[1] - 27), value=1)
    options = {CACHE: cache_of(first), "max_new_tokens": 40, "min_new_tokens": 40}
    grown = []
    grow = RelayLayer._grow
    monkeypatch.setattr(
        RelayLayer, "_grow", lambda layer, capacity, *like: (grown.append(capacity), grow(layer, capacity, *like))
    )
    model.generate(turn, attention_mask=mask, **options)
    assert model.relay.last.relayed
    assert grown == [turn.shape[1] + 40 - 20] * 2


@pytest.mark.parametrize("options", [{}, {"do_sample": True}, {"num_beams": 3}], ids=["greedy", "sampling", "beams"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_decode_step_does_the_same_on_the_same_storages(recorded, family, options):
    model = tiny_model(family)
    inputs = prompts(20, RAGGED)
    torch.manual_seed(0)
    stock = generate(model, inputs, **options)
    relay_hf.patch_model(model, policy="always", trust=["*"])
    steps = recorded(model)
    torch.manual_seed(0)
    assert torch.equal(generate(model, inputs, **options), stock)
    assert model.relay.last.relayed
    _, prompt, *decode = steps
    assert len(decode) == 11
    assert decode[0].operations != prompt.operations
    names = {name for name, *_ in decode[0].operations}
    assert "relay_attention" in names
    for step in decode:
        assert step.operations == decode[0].operations
        assert step.storages == decode[0].storages
        assert not step.reads
    assert not names & WAITING


@pytest.mark.parametrize("holes", [False, True])
def test_a_step_sees_rows_that_were_reordered_in_place(holes):
    model = relay_hf.patch_model(tiny_model("llama"), policy="always", trust=["*"])
    inputs = prompts(20, RAGGED)
    if holes:
        inputs["attention_mask"][1, 23] = 0
    cache = cache_of(generate(model, inputs, return_dict_in_generate=True))
    layer = cache.layers[0]
    decoding = StaticStep(cache, layer)
    before = decoding.plan.own_start.tolist()
    own_mask = None if decoding.plan.own_mask is None else decoding.plan.own_mask.clone()
    assert (own_mask is not None) == holes
    assert decoding.plan.queries().own_starts == tuple(before)
    layer.own_length += 1  # as a step leaves it
    order = torch.tensor([2, 0, 3, 1])
    cache.rows.reorder(order)
    layer._buffers = tuple(torch.nn.functional.pad(part, (0, 0, 0, 4)) for part in layer._buffers)
    assert not decoding.leads_on(cache, 4), "the buffers are others"
    decoding.advance()
    assert decoding.plan.queries().own_starts == tuple(before[row] for row in order)
    assert decoding.plan.queries().columns == (layer.own_length,) * 4
    if holes:
        assert torch.equal(decoding.plan.own_mask, own_mask[order])


def loop(change, mask_of=lambda mask, columns: mask, by_position=False):
    """A decoding loop of the caller's own, that changes the rows of its cache after the third token."""

    def decode(model, input_ids, logits_processor, stopping_criteria, generation_config, synced_gpus=None, **inputs):
        inputs.pop("streamer", None)
        mask = inputs.get("attention_mask")
        mask = torch.ones_like(input_ids) if mask is None else mask
        outputs = model._prefill(input_ids, generation_config, inputs)
        cache, steps = cache_of(outputs), []
        for number in range(8):
            steps.append(outputs.logits[:, -1])
            tokens = steps[-1].argmax(-1, keepdim=True)
            mask = torch.cat([mask, torch.ones_like(tokens)], dim=1)
            if number == 3:
                cache, mask, tokens = change(cache, mask, tokens)
            positions = mask.cumsum(1)[:, -1:] - 1
            shown = mask_of(mask, number)
            given = (tokens, shown) if by_position else ()
            named = {} if by_position else {"input_ids": tokens, "attention_mask": shown}
            outputs = model(*given, **named, position_ids=positions, **{CACHE: cache}, use_cache=True)
        return torch.stack(steps)

    return decode


def reorder(cache, mask, tokens):
    order = torch.arange(len(tokens)).flip(0)
    cache.reorder_cache(order)
    return cache, mask[order], tokens[order]


def select_in_inference_mode(cache, mask, tokens):
    with torch.inference_mode():
        cache.batch_select_indices(torch.arange(len(tokens)))
    return cache, mask, tokens


def hide_a_generated_token(mask, number):
    mask = mask.clone()
    mask[:, 29:30] = 0
    return mask


@pytest.mark.parametrize(
    "decode",
    [
        loop(reorder),
        loop(select_in_inference_mode),
        loop(reorder, by_position=True),
        loop(reorder, hide_a_generated_token),
    ],
    ids=["reorder", "inference", "positional", "hidden"],
)
@pytest.mark.parametrize("own", [RAGGED, (5, 5, 5, 5)], ids=["ragged", "equal"])
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_loops_of_the_callers_own(family, own, decode):
    model = tiny_model(family).double()
    inputs = prompts(20, own)
    stock = model.generate(**inputs, max_new_tokens=8, custom_generate=decode)
    relay_hf.patch_model(model, policy="always", trust=["*"])
    torch.testing.assert_close(model.generate(**inputs, max_new_tokens=8, custom_generate=decode), stock)
    assert model.relay.last.relayed
