"""Decode steps as graphs: stock's tokens, one capture for many calls, and a reason where there is none."""

import copy
import threading

import pytest
import torch
from transformers import DynamicCache

import relay_hf
from relay_hf.cache_utils import RelayCache, layer
from relay_hf.errors import RelayError
from relay_hf.generation import lay_out
from relay_hf.generation.call import current_call
from relay_hf.testing import prompts
from tests.support.generating import CACHE, cache_of, generate
from tests.support.model_snapshot import snapshot
from tests.support.tiny_models import tiny_model


def patch(model, **options):
    return relay_hf.patch_model(model, **{"policy": "always", "cuda_graphs": True, "trust": ["*"], **options})


@pytest.mark.parametrize("options", [{}, {"do_sample": True}, {"num_beams": 2}], ids=["greedy", "sampling", "beams"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral", "gemma2"])
def test_tokens_are_stocks(graphs, family, options):
    model = tiny_model(family)
    inputs = prompts(20, (3, 5))
    torch.manual_seed(0)
    stock = generate(model, inputs, **options)
    patch(model)
    torch.manual_seed(0)
    assert torch.equal(generate(model, inputs, **options), stock)
    report = model.relay.last
    assert (report.relayed, report.graph_reason) == (True, "")
    assert report.graph_steps == 10, "of eleven decode steps the first is recorded"
    assert len(graphs) == 1
    torch.manual_seed(0)
    assert torch.equal(generate(model, inputs, **options), stock)
    assert model.relay.last.graph_steps == 11, "a kept graph replays the first steps too"
    assert len(graphs) == 1


def test_another_prefix_and_other_rows_take_the_same_graph(graphs):
    model = tiny_model("llama")
    calls = [prompts(prefix, own, seed) for prefix, own, seed in ((20, (3, 5), 0), (300, (4, 2), 1), (17, (1, 5), 2))]
    stock = [generate(model, inputs) for inputs in calls]
    patch(model)
    for inputs, expected in zip(calls, stock, strict=True):
        assert torch.equal(generate(model, inputs), expected)
    assert len(graphs) == 1
    assert model.relay.last.graph_steps == 11


def test_experts_that_are_chosen_by_shape_are_no_graph(graphs):
    model = tiny_model("gpt_oss")  # on a CPU each expert runs with as many tokens as chose it
    inputs = prompts(20, (3, 5))
    stock = generate(model, inputs)
    patch(model)
    assert torch.equal(generate(model, inputs), stock)
    assert model.relay.last.relayed
    assert model.relay.last.graph_steps == 0
    assert model.relay.last.graph_reason.startswith("two steps of the model differ")


def tree(seed=0):
    """Four rows that share 20 tokens, and two and two of them 18 more."""
    inputs = prompts(20, (30, 30, 30, 30), seed)
    ids = inputs["input_ids"]
    ids[1, 20:38], ids[3, 20:38] = ids[0, 20:38].clone(), ids[2, 20:38].clone()
    return inputs


def test_trees_are_read_from_tables_too(graphs):
    model = tiny_model("llama")
    calls = [tree(), tree(5)]
    stock = [generate(model, inputs) for inputs in calls]
    patch(model)
    for inputs, expected in zip(calls, stock, strict=True):
        assert torch.equal(generate(model, inputs), expected)
        assert model.relay.last.levels == 2
    assert len(graphs) == 1
    assert model.relay.last.graph_steps == 11


def test_a_returned_cache_is_not_written_to_by_the_next_call(graphs):
    model = tiny_model("llama")
    inputs, other = prompts(20, (3, 5)), prompts(20, (5, 4), seed=3)
    stock = generate(model, inputs, return_dict_in_generate=True)
    turn = torch.cat([stock.sequences, stock.sequences[:, 5:9]], dim=1)
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, turn.shape[1] - 25), value=1)
    expected = model.generate(turn, attention_mask=mask, max_new_tokens=6, **{CACHE: cache_of(stock)})
    patch(model)
    first = generate(model, inputs, return_dict_in_generate=True)
    generate(model, other)
    assert model.relay.last.graph_steps == 11, "on the graph of the first call"
    cache = cache_of(first)
    again = model.generate(turn, attention_mask=mask, max_new_tokens=6, **{CACHE: cache})
    assert torch.equal(again, expected)
    assert model.relay.last.reason == "a returned cache, continued"


def test_a_cache_that_somebody_held_on_to_is_not_written_to_by_the_next_call(graphs):
    model = patch(tiny_model("llama"))
    held = []

    def hold(input_ids, scores):
        held[:] = [current_call().cache]
        return torch.zeros(len(input_ids), dtype=torch.bool)

    generate(model, prompts(20, (3, 5)), stopping_criteria=[hold])
    before = [part.clone() for part in held[0].layers[0].own()]
    generate(model, prompts(20, (5, 4), seed=3))
    assert model.relay.last.graph_steps == 11
    assert all(torch.equal(now, then) for now, then in zip(held[0].layers[0].own(), before, strict=True))


@pytest.mark.parametrize("change", ["in place", "assigned", "read"])
def test_a_cache_that_is_changed_between_replays_goes_on_as_stocks_does(graphs, change):
    found = []
    for model in (tiny_model("llama"), patch(tiny_model("llama"))):
        cache = RelayCache(model.config) if hasattr(model, "relay") else DynamicCache(config=model.config)

        def edit(input_ids, scores, cache=cache):
            keys = cache.layers[1].keys if input_ids.shape[1] == 31 else None
            if keys is not None and change == "in place":
                keys[:, :, 21:24] *= 4
            elif keys is not None and change == "assigned":
                cache.layers[1].keys = keys * 2
            return scores

        options = {"logits_processor": [edit], "return_dict_in_generate": True, "output_logits": True}
        found.append(generate(model, prompts(20, (3, 5)), **{CACHE: cache}, **options))
    assert torch.equal(*(each.sequences for each in found))
    torch.testing.assert_close(*(torch.stack(each.logits) for each in found), atol=1e-4, rtol=1e-4)
    report = model.relay.last
    assert report.graph_steps == (10 if change == "read" else 5), report
    changed = "keys or values of the cache were changed within the call"
    assert report.graph_reason == ("" if change == "read" else changed)
    assert torch.equal(generate(model, prompts(20, (3, 5))), generate(tiny_model("llama"), prompts(20, (3, 5))))
    assert model.relay.last.graph_steps == 11


def test_weights_that_change_in_place_are_read_and_new_ones_are_captured_anew(graphs):
    model = patch(tiny_model("llama"))
    inputs = prompts(20, (3, 5))
    generate(model, inputs)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(-1.5)
    changed = generate(model, inputs)
    assert model.relay.last.graph_steps == 11
    model.model.layers[0].mlp.up_proj.weight = torch.nn.Parameter(-model.model.layers[0].mlp.up_proj.weight.detach())
    replaced = generate(model, inputs)
    assert model.relay.last.graph_steps == 10
    assert len(graphs) == 2
    relay_hf.unpatch_model(model)
    assert torch.equal(generate(model, inputs), replaced)
    model.model.layers[0].mlp.up_proj.weight.data.neg_()
    assert torch.equal(generate(model, inputs), changed)


def test_a_configuration_that_changes_is_captured_anew(graphs):
    model = patch(tiny_model("gemma2"))
    inputs = prompts(20, (3, 5))
    generate(model, inputs)
    model.config.final_logit_softcapping = 0.05
    edited = generate(model, inputs)
    assert len(graphs) == 2
    relay_hf.unpatch_model(model)
    assert torch.equal(generate(model, inputs), edited)


class Reads(torch.nn.Module):
    """A part of a model that reads a number on the host."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, hidden):
        return self.inner(hidden) * float(hidden[0, 0, 0] * 0 + 1)


class Counts(torch.nn.Module):
    """A part of a model that counts its calls on the host."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.calls = inner, 0

    def forward(self, hidden):
        self.calls += 1
        return self.inner(hidden) * (1 + self.calls)


@pytest.mark.parametrize(
    ("part", "why"), [(Reads, "a capture can't wait"), (Counts, "two steps of the model differ: aten.mul.Tensor")]
)
def test_a_model_that_a_graph_would_be_wrong_for_goes_on_without(graphs, part, why):
    model = tiny_model("llama")
    inner = model.model.norm
    inputs = prompts(20, (3, 5))
    model.model.norm = part(inner)
    stock = generate(model, inputs, output_logits=True, return_dict_in_generate=True)
    model.model.norm = part(inner)
    patch(model)
    ours = generate(model, inputs, output_logits=True, return_dict_in_generate=True)
    assert model.relay.last.relayed
    assert why in model.relay.last.graph_reason
    assert model.relay.last.graph_steps == 0
    assert torch.equal(ours.sequences, stock.sequences)
    if part is Reads:
        torch.testing.assert_close(torch.stack(ours.logits), torch.stack(stock.logits), rtol=0, atol=1e-4)


def test_a_call_that_is_interrupted_leaves_a_graph_that_serves_the_next(graphs):
    model = tiny_model("llama")
    inputs = prompts(20, (3, 5))
    stock = generate(model, inputs)
    patch(model)

    def interrupt(input_ids, scores):
        if input_ids.shape[1] == 32:
            raise KeyboardInterrupt
        return torch.zeros(len(input_ids), dtype=torch.bool)

    with pytest.raises(KeyboardInterrupt):
        generate(model, inputs, stopping_criteria=[interrupt])
    assert torch.equal(generate(model, inputs), stock)
    assert model.relay.last.graph_steps == 11


def test_auto_captures_where_enough_steps_may_follow(graphs):
    model = patch(tiny_model("llama"), cuda_graphs="auto")
    inputs = prompts(20, (3, 5))
    generate(model, inputs)
    assert model.relay.last.graph_steps == 0
    assert model.relay.last.graph_reason == "too few steps may follow for a capture to pay"
    generate(model, inputs, max_new_tokens=40, min_new_tokens=40)
    assert model.relay.last.graph_steps == 38
    generate(model, inputs)
    assert model.relay.last.graph_steps == 11, "what is kept costs nothing"


def test_a_call_that_outgrows_its_buffers_is_captured_again(graphs, monkeypatch):
    monkeypatch.setattr(lay_out, "free_bytes", lambda device: 0)
    monkeypatch.setattr(layer, "_LEAST_RESERVED", 6)
    model = tiny_model("llama")
    inputs = prompts(20, (3, 5))
    options = {"max_new_tokens": 24, "min_new_tokens": 24}
    stock = generate(model, inputs, **options)
    patch(model)
    assert torch.equal(generate(model, inputs, **options), stock)
    assert len(graphs) == 3
    assert model.relay.last.graph_steps > 12


def test_no_more_is_kept_than_there_is_room_for(graphs, monkeypatch):
    model = patch(tiny_model("llama"))
    for rows in range(2, 13):
        generate(model, prompts(20, tuple(range(1, rows + 1))))
    assert len(model.relay._hooks.graphs) == 8
    assert model.relay._hooks.graphs.nbytes > 0
    assert model.relay.last.graph_bytes > 0
    model.relay.clear()
    assert len(model.relay._hooks.graphs) == 0
    monkeypatch.setattr(type(model.relay._hooks.graphs), "_budget", lambda graphs: 10)
    generate(model, prompts(20, (3, 5)))
    assert model.relay.last.graph_steps == 10
    assert len(model.relay._hooks.graphs) == 0


@pytest.mark.parametrize("case", ["off", "holes", "compiled", "forward", "autocast"])
def test_reasons(graphs, case):
    model, inputs, why = tiny_model("llama"), prompts(20, (3, 5)), None
    context = torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast")
    with context:
        stock = generate(model, inputs)
    patch(model, cuda_graphs=case != "off")
    if case == "off":
        why = "cuda_graphs=False"
    if case == "holes":
        inputs["attention_mask"][1, 22] = 0
        relay_hf.unpatch_model(model)
        stock = generate(model, inputs)
        patch(model)
        why = "the mask has holes"
    if case == "compiled":
        model.compile(backend="eager")
        why = "the model is compiled"
    if case == "forward":
        model.model.norm.forward = model.model.norm.forward
        why = "a module's forward was replaced"
    if case == "autocast":
        why = "autocast is on"
    with context:
        tokens = generate(model, inputs)
    assert case == "autocast" or torch.equal(tokens, stock)  # in half precision a token may be another
    assert model.relay.last.relayed
    assert (model.relay.last.graph_steps, model.relay.last.graph_reason) == (0, why)


@pytest.mark.parametrize("reset", [False, True])
def test_nothing_stays_on_the_model(graphs, reset):
    model = tiny_model("llama")
    if reset:
        model._compiled_call_impl = None  # how a compiled model is made one that is not
        model.note = "set later"
    before = snapshot(model)
    patch(model)
    inside = []

    def look(input_ids, scores):
        inside.append("_compiled_call_impl" in vars(model))
        return torch.zeros(len(input_ids), dtype=torch.bool)

    generate(model, prompts(20, (3, 5)), stopping_criteria=[look])
    assert all(inside)
    assert vars(model).get("_compiled_call_impl") is None
    relay_hf.unpatch_model(model)
    assert snapshot(model) == before


def test_two_threads_have_a_graph_each(graphs):
    model = tiny_model("llama")
    calls = [prompts(20, (3, 5)), prompts(30, (4, 6), seed=1)]
    stock = [generate(model, inputs) for inputs in calls]
    patch(model)
    found, together = {}, threading.Barrier(2)

    def wait(input_ids, scores):
        together.wait(timeout=60)
        return torch.zeros(len(input_ids), dtype=torch.bool)

    def run(index):
        found[index] = generate(model, calls[index], stopping_criteria=[wait])

    for _ in range(2):
        threads = [threading.Thread(target=run, args=(index,)) for index in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(torch.equal(found[index], stock[index]) for index in range(2))
    assert "_compiled_call_impl" not in vars(model)


def test_a_conversation_is_kept_as_without_graphs(graphs):
    model = patch(tiny_model("llama"))
    inputs = prompts(20, (0,))
    first = generate(model, inputs)
    assert model.relay.last.graph_steps == 10
    turn = torch.cat([first, first[:, 4:9]], dim=1)
    model.generate(turn, attention_mask=torch.ones_like(turn), max_new_tokens=4, min_new_tokens=4)
    assert model.relay.last.prefix_tokens_reused == 31, "all but the last, which was not fed"


def test_a_copy_of_the_model_starts_without_graphs(graphs):
    model = patch(tiny_model("llama"))
    inputs = prompts(20, (3, 5))
    expected = generate(model, inputs)
    twin = copy.deepcopy(model)
    assert len(twin.relay._hooks.graphs) == 0
    assert torch.equal(generate(twin, inputs), expected)
    assert twin.relay.last.graph_steps == 10


def test_a_step_that_ran_ahead_and_is_not_asked_for_leaves_no_trace(graphs):
    model = tiny_model("llama")
    inputs = prompts(20, (3, 5))

    def stop(input_ids, scores):
        return torch.full((len(input_ids),), input_ids.shape[1] >= 31)

    options = {"stopping_criteria": [stop], "max_new_tokens": 20, "min_new_tokens": 0, "return_dict_in_generate": True}
    stock = generate(model, inputs, **options)
    patch(model)
    for _ in range(2):
        ours = generate(model, inputs, **options)
        assert torch.equal(ours.sequences, stock.sequences)
        ends = [cache_of(cache).layers[1].keys.shape for cache in (ours, stock)]
        assert cache_of(ours).get_seq_length() == cache_of(stock).get_seq_length(), ends
    assert graphs[0].replays == (4 + 1) + (5 + 1), "one more than was asked for in each call"
    assert options["stopping_criteria"] == [stop], "the caller's own list is as it was"


def test_a_loop_that_feeds_other_tokens_than_it_showed_is_found(graphs, monkeypatch):
    model = patch(tiny_model("llama"))
    inputs = prompts(20, (3, 5))
    prepare = type(model).prepare_inputs_for_generation

    def other(self, input_ids, **kwargs):
        inputs = prepare(self, input_ids, **kwargs)
        if input_ids.shape[1] == 32:
            inputs["input_ids"] = inputs["input_ids"] + 1
        return inputs

    monkeypatch.setattr(type(model), "prepare_inputs_for_generation", other)
    with pytest.raises(RelayError, match="fed other tokens"):
        generate(model, inputs)
    monkeypatch.undo()


class WarmsUp(torch.nn.Module):
    """A part of a model that does something else the first time."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.table = inner, None

    def forward(self, hidden):
        if hidden.shape[1] == 1 and self.table is None:
            self.table = torch.ones(hidden.shape[-1])
        return self.inner(hidden) if self.table is None else self.inner(hidden) * self.table


def test_a_first_step_that_does_more_than_others_is_no_hindrance(graphs):
    model = tiny_model("llama")
    model.model.norm = WarmsUp(model.model.norm)
    inputs = prompts(20, (3, 5))
    stock = generate(model, inputs)
    model.model.norm.table = None
    patch(model)
    assert torch.equal(generate(model, inputs), stock)
    assert (model.relay.last.graph_steps, model.relay.last.graph_reason) == (9, "")
