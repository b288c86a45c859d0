"""peft: a LoRA adapter, trained, disabled and merged; and prefix tuning."""

import copy

import peft
import pytest
import torch

import relay_hf

from .texts import texts

# peft itself uses a name that Transformers 5.23 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

ROWS = 4
LORA = peft.LoraConfig(task_type="CAUSAL_LM", r=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
PREFIX_TUNING = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=8)
each_order = pytest.mark.parametrize(
    "patch_first", [False, True], ids=["wrapped, then patched", "patched, then wrapped"]
)


@pytest.fixture
def inputs(tokenizer):
    return tokenizer(texts(ROWS), padding=True, return_tensors="pt")


def wrap(model, config):
    torch.manual_seed(0)
    return peft.get_peft_model(model, config).eval()


def wrapped(stock, config, patch_first):
    """The stock model and a patched one, both in the same peft model."""
    ours = copy.deepcopy(stock)
    if patch_first:
        return wrap(stock, config), wrap(relay_hf.patch_model(ours, policy="always"), config)
    return wrap(stock, config), relay_hf.patch_model(wrap(ours, config), policy="always")


def answers(model, inputs):
    return model.generate(**inputs, max_new_tokens=12, do_sample=False)


def optimizer_step(model, inputs):
    """One of training, on the adapter alone."""
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=0.1)
    model.train()
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    model.eval()


@each_order
def test_lora_is_relayed_and_what_is_kept_is_of_the_adapter_as_it_is(stock, inputs, patch_first):
    plain = answers(stock, inputs)
    models = wrapped(stock, LORA, patch_first)
    shared = None
    said = [plain]

    def assert_relayed(fresh):
        nonlocal shared
        expected, got = (answers(model, inputs) for model in models)
        assert torch.equal(got, expected)
        report = models[1].relay.last
        shared = shared or report.prefix_length
        assert (report.relayed, report.rows, report.prefix_length) == (True, ROWS, shared)
        assert report.prefix_tokens_reused == (0 if fresh else shared)
        if fresh:
            assert not torch.equal(got, said[-1])  # the change changes answers, so a stale prefix would too
        said.append(got)

    assert_relayed(fresh=True)
    assert_relayed(fresh=False)
    for model in models:
        optimizer_step(model, inputs)
    assert_relayed(fresh=True)
    with models[0].disable_adapter(), models[1].disable_adapter():
        assert_relayed(fresh=True)
        assert torch.equal(said[-1], plain)
    assert_relayed(fresh=True)
    expected = said[-1]
    ours = models[1].merge_and_unload()
    assert torch.equal(answers(ours, inputs), expected)
    assert (ours.relay.last.relayed, ours.relay.last.prefix_tokens_reused) == (True, 0)


# peft 0.21 gives what is learnt by the name that the cache had before Transformers 5.24, which takes its own instead.
@pytest.mark.filterwarnings("ignore:Both `past_key_values` and `cache` are set:FutureWarning")
@each_order
def test_prefix_tuning_is_untouched(stock, inputs, patch_first):
    plain = answers(stock, inputs)
    models = wrapped(stock, PREFIX_TUNING, patch_first)
    expected, got = (answers(model, inputs) for model in models)
    assert torch.equal(got, expected)
    assert not torch.equal(got, plain)
    report = models[1].relay.last
    assert (report.relayed, report.reason) == (False, "prepare_inputs_for_generation was replaced on this model")
