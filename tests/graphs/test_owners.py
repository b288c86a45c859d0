"""Who owns the memory of a graph: a cache while its call runs, and nobody after it."""

import copy
import gc
import threading
import weakref
from contextlib import suppress

import pytest
import torch

import relay_hf
from relay_hf.attention.static_step import StaticStep
from relay_hf.cache_utils import RelayLayer
from relay_hf.generation.call import current_call
from relay_hf.graphs import capture as capturing
from relay_hf.graphs.capture import one_capture
from relay_hf.testing import prompts
from tests.support.generating import CACHE, cache_of, generate
from tests.support.tiny_models import tiny_model

from .cpu_graph import CpuGraph


@pytest.fixture
def patch(graphs):
    return lambda model: relay_hf.patch_model(model, policy="always", cuda_graphs=True)


def at(columns):
    """Stopping criteria of a call that ends before it has made all its tokens."""
    return [lambda ids, scores, **kwargs: torch.full((len(ids),), ids.shape[1] >= columns)]


def turn(model, inputs, one, tokens=3, **options):
    """A next turn on a returned cache."""
    text = torch.cat([one.sequences, one.sequences[:, 5 : 5 + tokens]], dim=1).clone()
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, text.shape[1] - inputs["input_ids"].shape[1]), value=1)
    options = {"max_new_tokens": 9, "min_new_tokens": 9, **options}
    return model.generate(text, attention_mask=mask, **{CACHE: cache_of(one)}, **options)


def test_two_graphs_never_have_the_same_buffers(patch):
    """A call that ends early leaves a graph with less room than its next turn needs, which captures another."""
    model = tiny_model("llama")
    calls = [prompts(20, own, seed) for own, seed in (((3, 5), 0), ((5, 4), 3), ((2, 5), 4))]
    returned = {"return_dict_in_generate": True}

    def talk():
        early = {"max_new_tokens": 40, "min_new_tokens": 0, **returned}
        one = generate(model, calls[0], stopping_criteria=at(33), **early)
        two = turn(model, calls[0], one, stopping_criteria=at(42), **early)
        others = [generate(model, inputs, **returned) for inputs in calls[1:]]
        return [one.sequences, two.sequences, *(o.sequences for o in others), turn(model, calls[1], others[0])]

    stock = talk()
    patch(model)
    assert all(torch.equal(*pair) for pair in zip(talk(), stock, strict=True))
    buffers = [graph.buffers[0][0].data_ptr() for graph in model.relay._hooks.graphs._kept]
    assert len(set(buffers)) == len(buffers) > 1


def test_calls_in_and_out_of_inference_mode(patch):
    model = tiny_model("llama")
    calls = [prompts(20, (3, 5)), prompts(22, (4, 2), seed=8)]

    def talk():
        found = []
        for mode in (True, False, True, False):
            with torch.inference_mode(mode):
                ones = [generate(model, inputs, return_dict_in_generate=True) for inputs in calls]
            with torch.inference_mode(not mode):
                found.append(turn(model, calls[0], ones[0]))
                ones.append(generate(model, calls[1], return_dict_in_generate=True))
            found += [turn(model, calls[1], one) for one in ones[1:]]
        return found

    stock = talk()
    patch(model)
    assert all(torch.equal(*pair) for pair in zip(talk(), stock, strict=True))


def test_what_a_caller_holds_of_a_returned_cache_stays(patch):
    model = patch(tiny_model("llama"))
    cache = cache_of(generate(model, prompts(20, (3, 5)), return_dict_in_generate=True))
    held, twin = cache.layers[0].keys, copy.copy(cache)
    before = held.clone()
    del cache
    generate(model, prompts(20, (5, 4), seed=3))
    assert model.relay.last.graph_steps == 11
    assert torch.equal(held, before)
    assert torch.equal(twin.layers[0].keys, before)


@pytest.mark.parametrize("take", [copy.copy, lambda cache: cache.layers], ids=["a twin", "layers"])
def test_what_a_caller_took_of_a_cache_during_the_call_stays(patch, monkeypatch, take):
    """Though the cache itself is gone by the end; and of one of which nothing was taken nothing is copied."""
    model, held, moves = patch(tiny_model("llama")), [], []
    move_out = RelayLayer.move_out
    monkeypatch.setattr(RelayLayer, "move_out", lambda layer: moves.append(layer) or move_out(layer))

    def hold(ids, scores):
        held[:] = [take(current_call().cache)]
        return scores

    generate(model, prompts(20, (3, 5)), logits_processor=[hold])
    layer = getattr(held[0], "layers", held[0])[0]
    assert layer in moves
    before = layer.keys.clone()
    moves.clear()
    generate(model, prompts(20, (5, 4), seed=3))
    assert model.relay.last.graph_steps == 11
    assert torch.equal(layer.keys, before)
    assert moves == []


def test_a_kept_graph_holds_on_to_no_cache_and_no_prefix(patch):
    model = patch(tiny_model("llama"))
    outputs = generate(model, prompts(20, (3, 5)), return_dict_in_generate=True)
    cache = weakref.ref(cache_of(outputs))
    key = weakref.ref(cache_of(outputs).layers[1].shared[0].segment.key)
    model.relay._hooks.store.clear()
    del outputs
    gc.collect()
    assert len(model.relay._hooks.graphs) == 1
    assert (cache(), key()) == (None, None)


@pytest.mark.parametrize("columns", [26, 31, None], ids=["recorded", "replayed", "ends"])
def test_the_memory_of_a_call_is_free_as_soon_as_it_ends_or_is_interrupted(patch, columns):
    """Without the garbage collector: what runs its steps refers to the call, and the call to that."""
    model, caches = patch(tiny_model("llama")), []

    def watch(ids, scores):
        caches.append(weakref.ref(current_call().cache))
        if ids.shape[1] == columns:
            raise KeyboardInterrupt
        return scores

    gc.collect()
    gc.disable()
    try:
        with suppress(KeyboardInterrupt):
            generate(model, prompts(20, (3, 5)), logits_processor=[watch])
        assert [cache for cache in caches if cache() is not None] == []
    finally:
        gc.enable()
    assert len(caches) == (12 if columns is None else columns - 24)


def test_a_call_within_a_call(patch):
    model = tiny_model("llama")
    inputs, other = prompts(20, (3, 5)), prompts(22, (4, 2), seed=8)

    def run():
        inner = []

        def nest(ids, scores):
            if ids.shape[1] in (27, 30, 33):
                inner.append(generate(model, other))
            return torch.zeros(len(ids), dtype=torch.bool)

        return [generate(model, inputs, stopping_criteria=[nest]), *inner]

    stock = run()
    patch(model)
    for _ in range(3):
        assert all(torch.equal(*pair) for pair in zip(run(), stock, strict=True))


def test_guidance_runs_the_model_beside_the_graph(patch):
    model = tiny_model("llama")
    negative = prompts(9, (3, 5), seed=9)
    options = {
        "guidance_scale": 1.7,
        "negative_prompt_ids": negative["input_ids"],
        "negative_prompt_attention_mask": negative["attention_mask"],
    }
    stock = generate(model, prompts(20, (3, 5)), **options)
    patch(model)
    for steps in (10, 11):
        assert torch.equal(generate(model, prompts(20, (3, 5)), **options), stock)
        assert model.relay.last.graph_steps == steps


def test_an_interrupt_while_a_graph_takes_up_rows_leaves_them_to_their_cache(patch, monkeypatch):
    """The cache of a former turn goes on in the graph's buffers when the interrupt comes, and nobody moves it out."""
    model, inputs = patch(tiny_model("llama")), prompts(20, (3, 5))
    early = {"max_new_tokens": 40, "min_new_tokens": 0, "stopping_criteria": at(33)}
    one = generate(model, inputs, return_dict_in_generate=True, **early)

    def interrupt(decoding, cache):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(StaticStep, "take_up", interrupt)
        with pytest.raises(KeyboardInterrupt):
            turn(model, inputs, one, max_new_tokens=3, min_new_tokens=3)
    held = [part.clone() for part in cache_of(one).layers[0].own()]
    generate(model, prompts(20, (5, 4), seed=3))
    assert all(torch.equal(*pair) for pair in zip(cache_of(one).layers[0].own(), held, strict=True))


def test_no_two_threads_capture_at_once(patch, monkeypatch):
    """They would capture on one stream."""
    capture, found = CpuGraph.capture, []

    def knocking(graph, run):
        def knock():
            found.append(one_capture.acquire(blocking=False))

        other = threading.Thread(target=knock)
        other.start()
        other.join()
        return capture(graph, run)

    monkeypatch.setattr(CpuGraph, "capture", knocking)
    model = patch(tiny_model("llama"))
    for rows in ((3, 5), (3, 5, 4)):  # it is let go of in between
        generate(model, prompts(20, rows))
    assert found == [False, False]


@pytest.mark.parametrize("inputs", [prompts(20, (3, 5)), prompts(20, (3,))], ids=["rows", "a row"])
def test_a_step_is_not_captured_beside_calls_of_other_threads_where_torch_can_not(graphs, patch, monkeypatch, inputs):
    monkeypatch.setattr(capturing, "_CAPTURES_ALONE", True)
    model, other = patch(tiny_model("llama")), patch(tiny_model("llama"))
    begun, over = threading.Event(), threading.Event()

    def wait(ids, scores):
        begun.set()
        over.wait(timeout=60)
        return scores

    def end(ids, scores):
        if ids.shape[1] == inputs["input_ids"].shape[1] + 6:
            over.set()
            beside.join()
        return scores

    expected = generate(tiny_model("llama"), inputs)
    beside = threading.Thread(target=generate, args=(other, inputs), kwargs={"logits_processor": [wait]})
    beside.start()
    begun.wait(timeout=60)
    assert torch.equal(generate(model, inputs), expected)
    assert (model.relay.last.graph_steps, len(graphs)) == (0, 0)
    assert model.relay.last.graph_reason.startswith("other calls of generate() were running")
    assert torch.equal(generate(model, inputs, logits_processor=[end]), expected)
    assert model.relay.last.graph_steps == 5, "those behind the seventh token, for which the other call ended"
