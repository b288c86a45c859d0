"""Compiled steps of several models, and of several threads."""

import threading

import pytest
import torch

import relay_hf
from relay_hf.testing import prompts
from tests.support.generating import generate
from tests.support.tiny_models import tiny_model

INPUTS = prompts(20, (3, 7, 1, 5))


def patch(model, **options):
    return relay_hf.patch_model(model, policy="always", compile=True, **options)


@torch._dynamo.config.patch(recompile_limit=1)
def test_models_of_one_class_do_not_use_up_each_others_graphs(traced):
    models = [patch(tiny_model("llama")) for _ in range(3)]
    stock = generate(tiny_model("llama"), INPUTS)
    for model in models * 2:
        assert torch.equal(generate(model, INPUTS), stock)
        assert (model.relay.last.compiled_steps, model.relay.last.compile_reason) == (11, "")
    assert traced() == 3


@pytest.mark.parametrize("shared", [True, False], ids=["one model", "one compiles, one does not"])
def test_calls_of_several_threads(traced, shared):
    inputs = [prompts(20, (3, 7, 1, 5), seed=seed) for seed in range(3)]
    stock = [generate(tiny_model("llama"), each) for each in inputs]
    model = patch(tiny_model("llama"))
    other = model if shared else relay_hf.patch_model(tiny_model("llama"), policy="always")
    found, errors = {}, []

    def run(index):
        try:
            for turn in range(3):
                found[index, turn] = generate(model if index == 0 else other, inputs[index])
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert all(torch.equal(tokens, stock[index]) for (index, _), tokens in found.items())
    generate(model, INPUTS)
    assert (len(found), model.relay.last.compiled_steps, traced()) == (9, 11, 1), model.relay.last.compile_reason


def test_an_interrupt_while_it_compiles_leaves_nothing_open(no_graphs, monkeypatch):
    model = patch(tiny_model("llama"))

    def interrupt(graph, inputs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("torch._inductor.compile_fx.compile_fx", interrupt)
        with pytest.raises(KeyboardInterrupt):
            generate(model, INPUTS)
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", lambda graph, inputs: graph)
    assert torch.equal(generate(model, INPUTS), generate(tiny_model("llama"), INPUTS))
    assert (model.relay.last.relayed, model.relay.last.compiled_steps) == (True, 11)
