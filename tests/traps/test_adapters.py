"""peft: what it adds to a prompt, and rows that run through adapters of their own."""

import copy

import peft
import pytest
import torch

import relay_hf
from relay_hf.generation import eligible_code, eligible_models
from relay_hf.model.upstream.names import CACHE
from relay_hf.testing import prompts
from tests.models.trial import TOLERANCE
from tests.support.tiny_models import tiny_model

from .compare import LEAST_WRONG, assert_untouched, assert_wrong, beside_a_patched_copy, error, run

# peft itself uses a name that Transformers 5.23 deprecates, and says of each prompt that it ignores its positions.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning"),
]

INPUTS = prompts(20, (3, 7, 1, 5))
REPLACED = "prepare_inputs_for_generation was replaced on this model"
HOOK = "a forward hook on Linear (peft.tuners.lora.model."
_KIND = {"task_type": "CAUSAL_LM"}
_LEARNT = {**_KIND, "num_virtual_tokens": 4}

PROMPT_LEARNING = {
    "prompt tuning": lambda: peft.PromptTuningConfig(**_LEARNT),
    "p-tuning": lambda: peft.PromptEncoderConfig(**_LEARNT, encoder_hidden_size=16),
    "prefix tuning": lambda: peft.PrefixTuningConfig(**_LEARNT),
    "context-aware prompt tuning": lambda: peft.CPTConfig(
        **_KIND, cpt_token_ids=[5, 6, 7], cpt_mask=[1, 1, 1], cpt_tokens_type_mask=[1, 2, 3]
    ),
}


@pytest.fixture(autouse=True)
def the_caches_name(monkeypatch):
    """peft 0.21 looks for the cache by the name that it had before Transformers 5.24: it gets that, and gives it back.

    Left alone, stock drops the keys and values that prefix tuning has learnt, and puts learnt tokens before each step.
    """
    kind = peft.PeftModelForCausalLM
    prepare = kind.prepare_inputs_for_generation

    def renamed(inputs, before, after):
        return {after if name == before else name: value for name, value in inputs.items()}

    def prepare_by_the_old_name(self, *args, **kwargs):
        stocks = self.base_model_prepare_inputs_for_generation
        self.base_model_prepare_inputs_for_generation = lambda *args, **kwargs: renamed(
            stocks(*args, **kwargs), CACHE, "past_key_values"
        )
        try:
            return renamed(prepare(self, *args, **kwargs), "past_key_values", CACHE)
        finally:
            self.base_model_prepare_inputs_for_generation = stocks

    monkeypatch.setattr(kind, "prepare_inputs_for_generation", prepare_by_the_old_name)


def wrapped(config, patch_first=False):
    """A stock model and a patched one, both in the same peft model."""
    models = []
    for number in range(2):
        base = tiny_model("llama")
        if number and patch_first:
            relay_hf.patch_model(base, policy="always")
        torch.manual_seed(0)
        models.append(peft.get_peft_model(base, config()).eval())
    relay_hf.patch_model(models[1], policy="always")
    return tuple(models)


@pytest.mark.parametrize("patch_first", [False, True])
@pytest.mark.parametrize("method", PROMPT_LEARNING)
def test_prompt_learning_is_untouched(method, patch_first):
    models = wrapped(PROMPT_LEARNING[method], patch_first)
    assert_untouched(models, INPUTS, REPLACED)
    assert error(run(tiny_model("llama"), INPUTS), run(models[0], INPUTS)) > LEAST_WRONG  # it does add something


def no_guard(monkeypatch):
    monkeypatch.setattr(eligible_models, "model_refusal", lambda *args: None)
    monkeypatch.setattr(eligible_code, "_module_refusal", lambda *args: None)  # of this file's own shim


@pytest.mark.parametrize("method", ["prompt tuning", "p-tuning"])
def test_what_is_learnt_as_tokens_needs_the_guard(method, monkeypatch):
    """It is put in front of a forward that finds an empty cache: of the prefix alone, and not of the rows."""
    no_guard(monkeypatch)
    assert_wrong(wrapped(PROMPT_LEARNING[method]), prompts(20, (5, 5, 5)))


@pytest.mark.parametrize("method", ["prompt tuning", "p-tuning"])
def test_behind_it_stands_the_guard_of_positions(method, monkeypatch):
    """Such models run without positions."""
    no_guard(monkeypatch)
    assert_untouched(wrapped(PROMPT_LEARNING[method]), INPUTS, "the model counts columns, and rows are padded")


def test_what_is_learnt_as_keys_and_values_needs_the_guard(monkeypatch):
    """It takes a cache of an unknown kind for a static one, and asks for what only that one has; or, with an older
    Transformers, puts one row's prefix before all."""
    no_guard(monkeypatch)
    models = wrapped(PROMPT_LEARNING["prefix tuning"])
    assert_untouched(models, INPUTS, "a relayed prefill raised")


def lora():
    return peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)


def two_adapters():
    torch.manual_seed(0)
    stock = peft.get_peft_model(tiny_model("llama"), lora())
    stock.add_adapter("second", lora())
    return beside_a_patched_copy(stock.eval())


BY_ROW = ["default", "second", "__base__", "default"]


@pytest.mark.parametrize("names", [BY_ROW, ["second"] * 4])
def test_adapters_by_row_are_untouched(names):
    assert_untouched(two_adapters(), INPUTS, HOOK, adapter_names=names)


def one_adapter_then_others(models):
    """The first call keeps the prefix as the first adapter makes it."""
    stock, ours = models
    assert error(run(stock, INPUTS), run(ours, INPUTS)) <= TOLERANCE
    assert [len(kept) for kept in ours.relay.prefixes] == [20]
    return error(*(run(model, INPUTS, adapter_names=BY_ROW) for model in models))


def test_what_one_adapter_keeps_is_not_used_by_others():
    models = two_adapters()
    assert one_adapter_then_others(models) <= TOLERANCE
    assert models[1].relay.last.reason.startswith(HOOK)


def test_adapters_by_row_need_the_guard(monkeypatch):
    monkeypatch.setattr(eligible_code, "_hook_refusal", lambda *args: None)
    models = two_adapters()
    assert_untouched(
        copy.deepcopy(models), INPUTS, "Length of `adapter_names` should be the same", adapter_names=BY_ROW
    )
    assert one_adapter_then_others(models) > LEAST_WRONG
    assert models[1].relay.last.prefix_tokens_reused == 20


def test_an_adapter_that_tokens_activate_is_untouched():
    """From its invocation tokens on: peft tells its layers by hooks where those stand in each row."""

    def activated():
        return peft.LoraConfig(
            **_KIND, r=4, target_modules=["q_proj"], init_lora_weights=False, alora_invocation_tokens=[5, 6]
        )

    inputs = {name: value.clone() for name, value in INPUTS.items()}
    inputs["input_ids"][0, -3:-1] = torch.tensor([5, 6])
    assert_untouched(wrapped(activated), inputs, HOOK)


def test_adapters_that_are_mixed_by_row_are_untouched():
    """Poly mixes its adapters by each row's task, of which its hooks tell its layers."""

    def mixed():
        return peft.PolyConfig(**_KIND, r=4, n_tasks=2, n_skills=2, target_modules=["q_proj"], init_weights=False)

    hook = "a forward hook on Linear (peft.tuners.poly.model.PolyModel."
    assert_untouched(wrapped(mixed), INPUTS, hook, task_ids=torch.tensor([0, 1, 0, 1]))
