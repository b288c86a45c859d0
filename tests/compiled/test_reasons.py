"""Why steps are not compiled: the call runs without, and its report says why."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import relay_hf
from relay_hf.compiled import inductor
from relay_hf.testing import prompts
from tests.support.generating import generate
from tests.support.tiny_models import tiny_model

INPUTS = prompts(20, (3, 7, 1, 5))


def with_hook(model):
    model.model.layers[0].register_forward_hook(lambda *args: None)


def with_hook_on_itself(model):
    model.register_forward_hook(lambda *args: None)


def quantized(model):
    model.model.layers[0].mlp.up_proj.quantization_scheme = SimpleNamespace(
        input_activations=None, output_activations=None
    )


def compiled_by_the_user(model):
    model.model.layers[0].compile(backend="eager")


def with_a_replaced_forward(model):
    model.model.layers[0].mlp.forward = model.model.layers[0].mlp.forward


def learning(model):
    model.train()


def nothing(model):
    pass


@pytest.mark.parametrize(
    ("family", "change", "options", "why"),
    [
        ("llama", with_hook, {"trust": ["*"]}, "a module has hooks"),
        ("llama", with_hook_on_itself, {"trust": ["*"]}, "a module has hooks"),
        ("llama", quantized, {"trust": ["*"]}, "the model is quantized"),
        ("llama", compiled_by_the_user, {}, "the model or a part of it is compiled already"),
        ("llama", with_a_replaced_forward, {"trust": ["*"]}, "the forward of a LlamaMLP was replaced"),
        ("llama", learning, {}, "the model is in training mode"),
        ("llama", nothing, {"trust": ["lm_head"]}, "trust vouches for code"),
        ("deepseek_v3", nothing, {}, "attention takes other keys and values than the cache stores"),
        ("jamba", nothing, {}, "the model has recurrent layers"),
    ],
)
def test_the_call_runs_without(no_graphs, family, change, options, why):
    model = tiny_model(family)
    change(model)
    stock = generate(model, INPUTS)
    relay_hf.patch_model(model, policy="always", compile=True, **options)
    assert torch.equal(generate(model, INPUTS), stock)
    report = model.relay.last
    assert (report.relayed, report.compiled_steps, report.compile_bytes) == (True, 0, 0), report
    assert report.compile_reason.startswith(why)


def test_autocast(no_graphs):
    model = relay_hf.patch_model(tiny_model("llama"), policy="always", compile=True)
    with torch.autocast("cpu", torch.bfloat16):
        generate(model, INPUTS)
    assert model.relay.last.compile_reason == "autocast or gradients are on"
    assert no_graphs["unique_graphs"] == 0


def test_linears_false_leaves_linear_layers_to_pytorch(traced):
    model = relay_hf.patch_model(tiny_model("llama"), policy="always", compile=True)
    generate(model, INPUTS)
    relay_hf.patch_model(model, linears=False)
    assert torch.equal(generate(model, INPUTS), generate(tiny_model("llama"), INPUTS))
    report = model.relay.last
    assert (report.compiled_steps, report.compile_bytes, traced()) == (11, 0, 2), report.compile_reason


def test_auto_waits_until_enough_steps_were_made_or_may_follow(traced):
    model = relay_hf.patch_model(tiny_model("llama"), policy="always", compile="auto")
    compiled = model.relay._hooks.compiled
    generate(model, INPUTS)
    assert (model.relay.last.compiled_steps, compiled._made) == (0, 11)
    compiled._made = 1495
    generate(model, INPUTS)
    assert (model.relay.last.compiled_steps, traced()) == (11, 1)


def test_a_failure_to_compile_is_met_once_and_leaves_the_tokens(no_graphs, monkeypatch):
    tried = []

    def fail(graph, inputs):
        tried.append(graph)
        raise NotImplementedError("no such code\nin several lines")

    monkeypatch.setattr(inductor, "backend", fail)
    model = tiny_model("llama")
    stock = generate(model, INPUTS)
    relay_hf.patch_model(model, policy="always", compile=True)
    for _ in range(2):
        assert torch.equal(generate(model, INPUTS), stock)
        report = model.relay.last
        assert (report.relayed, report.compiled_steps) == (True, 0)
        assert "no such code" in report.compile_reason
        assert "\n" not in report.compile_reason
    assert len(tried) == 1


def test_an_error_of_a_graph_that_runs_is_the_callers(traced, monkeypatch):
    model = relay_hf.patch_model(tiny_model("llama"), policy="always", compile=True)
    stock = generate(model, INPUTS)

    def fail(*args):
        raise relay_hf.RelayError("the device is lost")

    with monkeypatch.context() as patched:
        patched.setattr("relay_hf.attention.compiled.attend_layer", fail)
        with pytest.raises(relay_hf.RelayError, match="the device is lost"):
            generate(model, INPUTS)
    assert torch.equal(generate(model, INPUTS), stock)
    assert (model.relay.last.compiled_steps, traced()) == (11, 1)


LACKING = """
import logging, torch
logging.basicConfig(format="%(message)s")
import relay_hf
from relay_hf.testing import prompts, tiny_model
for _ in range(2):
    model = tiny_model("llama")
    stock = model.generate(**prompts(20, (3, 5)), max_new_tokens=4)
    relay_hf.patch_model(model, policy="always", compile=True)
    for _ in range(2):
        assert torch.equal(model.generate(**prompts(20, (3, 5)), max_new_tokens=4), stock)
        print(model.relay.last.relayed, model.relay.last.compiled_steps, model.relay.last.compile_reason)
"""


def test_a_missing_compiler_is_one_line_once():
    environment = {**os.environ, "CXX": "/nowhere/g++", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    run = subprocess.run([sys.executable, "-c", LACKING], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.count("True 0 no C++ compiler was found (InvalidCxxCompiler)") == 4, run.stdout
    assert run.stderr.count("no C++ compiler") == run.stderr.count("\n") == 1, run.stderr
