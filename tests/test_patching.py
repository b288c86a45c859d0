"""Patching adds the relay and nothing else, and unpatching takes all of it away."""

import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationMixin,
    LlamaForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
)
from transformers.generation.configuration_utils import ContinuousBatchingConfig

import relay_hf
from relay_hf.attention import interface
from relay_hf.model.attention_choice import attention_configs, deselect, select
from relay_hf.testing import prompts
from tests.support.generating import generate
from tests.support.model_snapshot import snapshot
from tests.support.sizes import FAMILIES
from tests.support.tiny_models import tiny_model

INPUTS = prompts(20, (3, 7, 1, 5))


class Stop(LogitsProcessor):
    """Raises in the middle of generate()."""

    def __init__(self, error, after=3):
        self.error, self.after, self.calls = error, after, 0

    def __call__(self, input_ids, scores):
        self.calls += 1
        if self.calls > self.after:
            raise self.error
        return scores


def test_patch_returns_the_same_object_and_can_be_repeated():
    model = tiny_model("llama")
    assert relay_hf.patch_model(model, policy="always") is model
    relay = model.relay
    assert relay_hf.patch_model(model, min_prefix_length=7) is model
    assert model.relay is relay
    assert (relay.config.policy, relay.config.min_prefix_length) == ("always", 7)


def test_options_that_are_assigned_do_what_patching_does():
    model = relay_hf.patch_model(tiny_model("llama"), policy="off")
    hooks, store = model.relay._hooks, model.relay._hooks.store
    hooks.findings.unexplained = 1
    model.relay.config = relay_hf.RelayConfig(policy="always", cuda_graphs=False)
    model.generate(**INPUTS, max_new_tokens=2)
    assert model.relay.last.relayed
    assert (hooks.findings.unexplained, hooks.graphs._config.cuda_graphs, hooks.store is store) == (0, False, True)
    model.relay.config = relay_hf.RelayConfig(policy="always", max_store_bytes=0)
    assert (model.relay.prefixes, hooks.store.budget) == ((), 0)


@pytest.mark.parametrize(
    ("size", "count"),
    [
        ("1GB", 10**9),
        ("1gb", 10**9),  # not bits
        ("1Gb", 10**9),
        ("512MiB", 512 * 2**20),
        (" 1.5 gib ", 3 * 2**29),
        ("64KiB", 2**16),
        (7, 7),
        (None, None),
    ],
)
def test_a_budget_may_be_a_text_and_becomes_bytes(size, count):
    model = relay_hf.patch_model(tiny_model("llama"), max_store_bytes=size)
    assert model.relay.config == relay_hf.RelayConfig(max_store_bytes=count)
    assert model.relay._hooks.store.budget == (2**30 if count is None else count)


@pytest.mark.parametrize("wrong", ["off", None, {"policy": "off"}])
def test_options_that_are_none_cannot_be_assigned(wrong):
    model = relay_hf.patch_model(tiny_model("llama"), policy="always")
    before = model.relay.config
    with pytest.raises(TypeError, match=r"config must be a RelayConfig; got .*patch_model\(model, policy='off'\)"):
        model.relay.config = wrong
    assert model.relay.config is before


def test_config_object_and_options():
    config = relay_hf.RelayConfig(policy="always", min_prefix_length=9)
    model = relay_hf.patch_model(tiny_model("llama"), config, min_prefix_length=5)
    assert (model.relay.config.policy, model.relay.config.min_prefix_length) == ("always", 5)
    assert config.min_prefix_length == 9


def test_what_torch_compile_made_of_a_model_is_patched_with_it():
    """Its generate() is that of the model inside, and so are its attributes."""
    model = tiny_model("llama")
    compiled = torch.compile(model, backend="eager")
    expected = generate(compiled, INPUTS)
    with torch.no_grad():
        logits = compiled(**INPUTS).logits
    before = snapshot(model)
    assert relay_hf.patch_model(compiled, policy="always") is compiled
    assert torch.equal(generate(compiled, INPUTS), expected)
    assert compiled.relay is model.relay
    assert compiled.relay.last.relayed
    with torch.no_grad():
        assert torch.equal(compiled(**INPUTS).logits, logits)
    with relay_hf.patched(compiled, policy="off"):
        generate(compiled, INPUTS)
        assert compiled.relay.last.reason == "policy 'off'"
    assert relay_hf.unpatch_model(compiled) is compiled
    assert not hasattr(compiled, "relay")
    assert snapshot(model) == before


def test_a_compiled_model_is_the_model_that_was_patched_before():
    model = relay_hf.patch_model(tiny_model("llama"), policy="always")
    compiled = torch.compile(model, backend="eager")
    assert relay_hf.patch_model(compiled, min_prefix_length=7).relay is model.relay
    assert relay_hf.unpatch_model(compiled) is compiled
    assert not hasattr(model, "relay")


def test_nested_patched_keeps_the_outer_options():
    model = relay_hf.patch_model(tiny_model("llama"), policy="always")
    with relay_hf.patched(model, policy="off"):
        generate(model, INPUTS)
        assert "policy 'off'" in model.relay.last.reason
    generate(model, INPUTS)
    assert model.relay.last.relayed


def test_our_attention_is_none_to_choose():
    """There would be nothing to hand a forward on to that is not relayed."""
    model = relay_hf.patch_model(tiny_model("llama"), policy="always")
    model.set_attn_implementation("relay_attention")
    with pytest.raises(relay_hf.RelayError, match="choose one of Transformers'"):
        generate(model, prompts(20, (3, 5)))
    model.set_attn_implementation("sdpa")
    generate(model, prompts(20, (3, 5)))
    assert model.relay.last.relayed


def test_the_config_names_the_users_attention_between_forwards():
    seen = []

    class Look(LogitsProcessor):
        def __call__(self, input_ids, scores):
            seen.append(model.config._attn_implementation)
            return scores

    model = relay_hf.patch_model(tiny_model("llama"), policy="always")
    generate(model, INPUTS, logits_processor=LogitsProcessorList([Look()]))
    assert model.relay.last.relayed
    assert set(seen) == {"sdpa"}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_forward_without_a_relay_cache_is_handed_over_while_another_is_relayed(family):
    """What a thread meets whose config another thread has switched: masks and attention of the user's choice."""
    model = tiny_model(family)
    interface.register()
    configs = attention_configs(model.modules())
    with torch.no_grad():
        expected = model(**INPUTS).logits
        select(configs, model)
        try:
            assert model.config._attn_implementation == "relay_attention"
            got = model(**INPUTS).logits
        finally:
            deselect(configs, model)
    assert torch.equal(got, expected)


def by_deepcopy(model):
    return copy.deepcopy(model)


def by_pickle(model):
    return pickle.loads(pickle.dumps(model))


def by_torch_save(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("duplicate", [by_deepcopy, by_pickle, by_torch_save])
def test_a_copy_is_patched_by_itself_and_starts_with_an_empty_store(duplicate):
    model = relay_hf.patch_model(tiny_model("llama"), policy="always")
    expected = generate(model, INPUTS)
    assert len(model.relay.prefixes) == 1
    twin = duplicate(model)
    assert twin.relay is not model.relay
    assert twin.relay._hooks.model is twin
    assert len(twin.relay.prefixes) == 0
    assert torch.equal(generate(twin, INPUTS), expected)
    assert twin.relay.last.relayed
    assert model.relay.stats().calls == 1
    with torch.no_grad():
        twin.lm_head.weight.zero_()
    assert not torch.equal(generate(twin, INPUTS), expected)
    relay_hf.unpatch_model(twin)
    assert torch.equal(generate(model, INPUTS), expected)
    assert not hasattr(twin, "relay")
    assert "generate" not in vars(twin)


@pytest.mark.parametrize(
    "take",
    [
        lambda model: model.generate,
        lambda model: model.relay,
        lambda model: (model.relay, model),
        lambda model: {"generate": model.generate, "model": model},
    ],
    ids=["generate", "relay", "relay first", "generate first"],
)
@pytest.mark.parametrize("duplicate", [by_deepcopy, by_pickle, by_torch_save])
def test_what_is_copied_by_its_handle_or_its_method_generates(duplicate, take):
    model = relay_hf.patch_model(tiny_model("llama"), policy="always")
    expected = generate(model, INPUTS)
    found = duplicate(take(model))
    if isinstance(found, dict | tuple):
        twin = found["model"] if isinstance(found, dict) else found[1]
    else:
        twin = (found._hooks if isinstance(found, relay_hf.relay.Relay) else found.__self__).model
    assert twin is not model
    assert torch.equal(generate(twin, INPUTS), expected)
    assert twin.relay.last.relayed
    relay_hf.unpatch_model(twin)
    assert torch.equal(generate(twin, INPUTS), expected)
    assert "generate" not in vars(twin)


def test_a_shallow_copy_can_not_be_patched_or_unpatched_and_leaves_the_original_whole():
    model = relay_hf.patch_model(tiny_model("llama"), policy="always")
    expected = generate(model, INPUTS)
    before = snapshot(model)
    twin = copy.copy(model)
    for change in (relay_hf.patch_model, relay_hf.unpatch_model, lambda it: relay_hf.patched(it).__enter__()):
        with pytest.raises(relay_hf.RelayError, match=r"shallow copy of a patched model.*use copy\.deepcopy"):
            change(twin)
    assert snapshot(model) == before
    assert torch.equal(generate(twin, INPUTS), expected)
    assert torch.equal(generate(model, INPUTS), expected)
    assert model.relay.last.relayed


def test_a_model_loaded_in_another_process_relays(tmp_path):
    model = relay_hf.patch_model(tiny_model("llama"), policy="always")
    expected = generate(model, INPUTS)
    torch.save((model, INPUTS, expected), tmp_path / "model.pt")
    code = (
        "import sys, torch\n"
        "model, inputs, expected = torch.load(sys.argv[1], weights_only=False)\n"
        "options = dict(max_new_tokens=12, min_new_tokens=12)\n"
        "assert torch.equal(model.generate(**inputs, **options), expected)\n"
        "assert model.relay.last.relayed, model.relay.last\n"
        # Hooks of the user's own get ids of their own, are seen, and survive the undoing of ours.
        "handles = [model.register_forward_hook(lambda *args: None) for _ in range(40)]\n"
        "model.generate(**inputs, **options)\n"
        "assert 'a forward hook on LlamaForCausalLM' in model.relay.last.reason, model.relay.last\n"
        "import relay_hf\n"
        "relay_hf.unpatch_model(model)\n"
        "assert len(model._forward_hooks) == 40, model._forward_hooks\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "model.pt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_generate_inside_generate():
    """A logits processor that generates with the same model, and runs its forward."""
    inner = []

    class Nested(LogitsProcessor):
        def __call__(self, input_ids, scores):
            inner.append(generate(model, INPUTS)[:, -1])
            with torch.no_grad():
                return scores + 0.01 * model(input_ids[:, -4:]).logits[:, -1]

    model = tiny_model("llama")
    expected = generate(model, INPUTS, logits_processor=LogitsProcessorList([Nested()]))
    relay_hf.patch_model(model, policy="always")
    assert torch.equal(generate(model, INPUTS, logits_processor=LogitsProcessorList([Nested()])), expected)
    assert model.relay.last.relayed
    assert model.relay.stats().relayed_calls == 13
    assert all(torch.equal(one, other) for one, other in zip(inner[:12], inner[12:], strict=True))


def test_save_and_reload(tmp_path):
    model = relay_hf.patch_model(tiny_model("llama"), policy="always")
    expected = generate(model, INPUTS)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert not hasattr(loaded, "relay")
    assert loaded.config._attn_implementation == "sdpa"
    assert AutoConfig.from_pretrained(tmp_path).to_dict().keys() == model.config.to_dict().keys()
    assert torch.equal(generate(loaded, INPUTS), expected)


def test_another_dtype_drops_the_prefixes():
    model = relay_hf.patch_model(tiny_model("llama"), policy="always")
    generate(model, INPUTS)
    model.to(torch.float64)
    generate(model, INPUTS)
    assert model.relay.last.relayed
    assert model.relay.last.prefix_tokens_reused == 0
    generate(model, INPUTS)
    assert model.relay.last.prefix_tokens_reused == 20


def test_generate_batch_still_serves():
    stock = tiny_model("llama", max_position_embeddings=128)
    ours = relay_hf.patch_model(copy.deepcopy(stock), policy="always")
    requests = [row[mask.bool()].tolist() for row, mask in zip(*INPUTS.values(), strict=True)]
    blocks = ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=256)  # by default most of the memory
    options = {"generation_config": copy.deepcopy(stock.generation_config), "continuous_batching_config": blocks}
    options["generation_config"].max_new_tokens = 4
    tokens = [
        {key: out.generated_tokens for key, out in model.generate_batch(inputs=requests, **options).items()}
        for model in (stock, ours)
    ]
    assert len(tokens[0]) == 4
    assert tokens[0] == tokens[1]


def test_training_still_trains():
    model = relay_hf.patch_model(tiny_model("llama"), policy="always")
    model.train()
    loss = model(**INPUTS, labels=INPUTS["input_ids"]).loss
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_eager_attentions_are_still_given():
    model = relay_hf.patch_model(tiny_model("llama", attn_implementation="eager"), policy="always")
    out = model(**INPUTS, output_attentions=True)
    assert len(out.attentions) == 2
    out = generate(model, INPUTS, output_attentions=True, return_dict_in_generate=True)
    assert out.attentions is not None
    assert "output_attentions" in model.relay.last.reason


@pytest.mark.parametrize(
    ("thing", "options", "error", "words"),
    [
        (nn.Linear(2, 2), {}, TypeError, "model must be a Transformers model that generates"),
        (None, {"polcy": "auto"}, TypeError, "unknown option 'polcy'; the options are policy"),
        (None, {"policy": "sometimes"}, ValueError, "policy must be one of 'auto', 'always', 'off'; got 'sometimes'"),
        (None, {"min_prefix_length": 0}, ValueError, "min_prefix_length must be at least 1; got 0"),
        (None, {"min_prefix_length": 2.5}, TypeError, "min_prefix_length must be an int; got 2.5"),
        (None, {"min_prefix_length": True}, TypeError, "min_prefix_length must be an int"),
        (None, {"backend": "cuda"}, ValueError, "backend must be one of"),
        (None, {"cuda_graphs": 1}, ValueError, "cuda_graphs must be one of"),
        (None, {"max_store_bytes": -1}, ValueError, "max_store_bytes must be at least 0"),
        (
            None,
            {"max_store_bytes": "1 apple"},
            ValueError,
            "max_store_bytes must be an int .*'1GB'.*'512MiB'.*'1 apple'",
        ),
        (None, {"max_store_bytes": "-1GB"}, ValueError, "max_store_bytes must be an int"),
        (None, {"max_store_bytes": "infGB"}, ValueError, "max_store_bytes must be an int"),
        (None, {"max_store_bytes": "1024"}, ValueError, "max_store_bytes must be an int .* got '1024'"),
        (
            None,
            {"max_store_bytes": 1e9},
            TypeError,
            "max_store_bytes must be an int .*'1GB'.* got 1000000000.0 of type",
        ),
        (None, {"max_store_bytes": True}, TypeError, "max_store_bytes must be an int .* got True of type bool"),
        (None, {"config": {"policy": "auto"}}, TypeError, "config must be a RelayConfig or None; got dict"),
    ],
)
def test_bad_input_names_the_argument_and_leaves_the_model(thing, options, error, words):
    model = tiny_model("llama") if thing is None else thing
    before = snapshot(model) if isinstance(model, nn.Module) else None
    with pytest.raises(error, match=words):
        relay_hf.patch_model(model, **options)
    if before is not None:
        assert snapshot(model) == before


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (GenerationMixin, "generate"),
        (LlamaForCausalLM, "generate"),
        (LlamaForCausalLM, "train"),
    ],
)
def test_a_wrapper_on_the_class_counts_while_it_is_there(owner, name, monkeypatch):
    """A tracer's, put on before the model is patched and taken off later, or put on later."""
    method, calls = getattr(LlamaForCausalLM, name), []

    def traced(self, *args, **kwargs):
        calls.append(name)
        return method(self, *args, **kwargs)

    def count(model):
        calls.clear()
        generate(model, INPUTS)
        assert model.relay.last.relayed, model.relay.last
        generate(model, {each: value[:, -4:] for each, value in INPUTS.items()})  # it shares nothing: stock's prefill
        model.train(False)
        return calls.count(name)

    expected = 2 if name == "generate" else 1  # of train
    with monkeypatch.context() as context:
        context.setattr(owner, name, traced, raising=False)
        model = relay_hf.patch_model(tiny_model("llama"), policy="always")
        assert count(model) == expected
    assert count(model) == 0
    with monkeypatch.context() as context:
        context.setattr(owner, name, traced, raising=False)
        assert count(model) == expected


@pytest.mark.parametrize("owner", [GenerationMixin, LlamaForCausalLM])
def test_a_wrapper_of_the_prefill_on_the_class_is_called_in_every_call(owner, monkeypatch):
    """It may change what the prefill returns. A relayed prefill would not come to it."""
    method, calls = GenerationMixin._prefill, []

    def traced(self, *args, **kwargs):
        calls.append(1)
        return method(self, *args, **kwargs)

    model = relay_hf.patch_model(tiny_model("llama"), policy="always")
    monkeypatch.setattr(owner, "_prefill", traced, raising=False)
    generate(model, INPUTS)
    assert (len(calls), model.relay.last.relayed) == (1, False)
    assert "test_a_wrapper_of_the_prefill_on_the_class_is_called_in_every_call.traced" in model.relay.last.reason
    monkeypatch.undo()
    generate(model, INPUTS)
    assert (len(calls), model.relay.last.relayed) == (1, True)


def test_options_given_through_a_wrapper_of_any_arguments_are_known(monkeypatch):
    """The caller has asked for a static cache: it is no default of the model's, which is overridden."""
    method = GenerationMixin.generate
    monkeypatch.setattr(GenerationMixin, "generate", lambda *args, **kwargs: method(*args, **kwargs))
    model = relay_hf.patch_model(tiny_model("llama"), policy="always")
    options = copy.deepcopy(model.generation_config)
    options.update(max_new_tokens=3, cache_implementation="static")
    model.generate(INPUTS["input_ids"], options, attention_mask=INPUTS["attention_mask"])
    assert "StaticCache" in model.relay.last.reason
    assert model.relay.last.reason_source == "call"
