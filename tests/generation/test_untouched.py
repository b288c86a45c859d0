"""What is not known to be exact passes through untouched, gives stock's output, and the report says why."""

import copy
import re

import pytest
import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM, DynamicCache, LogitsProcessor, LogitsProcessorList

import relay_hf
from relay_hf.testing import prompts
from tests.support.generating import CACHE, generate
from tests.support.tiny_models import tiny_model

INPUTS = prompts(20, (3, 7, 1, 5))


def pair(family="llama", **options):
    stock = tiny_model(family, **options)
    return stock, relay_hf.patch_model(copy.deepcopy(stock), policy="always")


def assert_untouched(stock, ours, reason, inputs=INPUTS, **options):
    torch.manual_seed(0)
    expected = generate(stock, inputs, **copy.deepcopy(options))
    torch.manual_seed(0)
    assert torch.equal(generate(ours, inputs, **copy.deepcopy(options)), expected)
    assert not ours.relay.last.relayed
    assert reason in ours.relay.last.reason, ours.relay.last
    assert ours.relay.last.backend == "stock"


@pytest.mark.parametrize(
    ("reason", "options"),
    [
        ("use_cache=False", {"use_cache": False}),
        ("StaticCache", {"cache_implementation": "static"}),
        ("output_hidden_states=True", {"output_hidden_states": True}),
        (f"{CACHE} was given", {CACHE: DynamicCache()}),
        ("position_ids were given", {"position_ids": torch.arange(27)[None].repeat(4, 1) + 3}),
        ("does not start with its common prefill", {"prompt_lookup_num_tokens": 3}),
    ],
)
def test_calls(reason, options):
    inputs = INPUTS
    if "prompt_lookup_num_tokens" in options:
        inputs = {name: value[1:2] for name, value in INPUTS.items()}
    assert_untouched(*pair(), reason, inputs, **options)


def test_inputs_embeds():
    stock, ours = pair()
    inputs = {"inputs_embeds": stock.get_input_embeddings()(INPUTS["input_ids"]).detach()}
    inputs["attention_mask"] = INPUTS["attention_mask"]
    assert_untouched(stock, ours, "inputs_embeds", inputs)


def test_a_window_of_one_token():
    """Stock's cache keeps `[-window + 1:]`, which is everything."""
    assert_untouched(*pair("mistral", sliding_window=1), "a window of one token")
    with pytest.raises(ValueError, match=r"can't hold: layer 0 .* a window of one token"):
        relay_hf.RelayCache(tiny_model("mistral", sliding_window=1).config)
    stock, ours = pair("mistral", sliding_window=2)
    assert torch.equal(generate(ours, INPUTS), generate(stock, INPUTS))
    assert ours.relay.last.relayed


def test_rows_that_share_nothing():
    inputs = {"input_ids": torch.arange(3, 63).view(3, 20), "attention_mask": torch.ones(3, 20, dtype=torch.int64)}
    assert_untouched(*pair(), "the rows share 0 tokens", inputs)


def test_a_row_that_is_all_padding():
    inputs = prompts(20, (3, 4))
    inputs["attention_mask"][1] = 0
    assert_untouched(*pair(), "a row ends in padding", inputs)


def test_policy_off():
    stock, ours = pair()
    relay_hf.patch_model(ours, policy="off")
    assert_untouched(stock, ours, "policy 'off'")


def test_policy_auto_leaves_small_gains():
    stock, ours = pair()
    relay_hf.patch_model(ours, policy="auto")
    assert_untouched(stock, ours, "policy 'auto'", prompts(17, (3, 2)))


def test_a_custom_attention_function():
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register("of_the_user", sdpa_attention_forward)
    AttentionMaskInterface.register("of_the_user", sdpa_mask)
    assert_untouched(*pair(attn_implementation="of_the_user"), "'of_the_user' may compute something else")


def test_forward_hooks_of_the_user():
    stock, ours = pair()
    for model in (stock, ours):
        model.model.layers[0].register_forward_hook(lambda module, args, output: output * 1.5)
    assert_untouched(stock, ours, "a forward hook on LlamaDecoderLayer")


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_dropout_only_matters_in_training_mode(mode):
    stock, ours = pair("gpt2", resid_pdrop=0.3)
    getattr(stock, mode)(), getattr(ours, mode)()
    if mode == "train":
        assert_untouched(stock, ours, "dropout is active (0.3)")
    else:
        generate(ours, INPUTS)
        assert ours.relay.last.relayed


def test_functional_dropout_in_training_mode():
    stock, ours = pair("llama", attention_dropout=0.2)
    stock.train(), ours.train()
    assert_untouched(stock, ours, "attention_dropout=0.2")


def test_other_noise_in_training_mode():
    stock, ours = pair("mixtral", router_jitter_noise=0.3)
    stock.train(), ours.train()
    assert_untouched(stock, ours, "router_jitter_noise=0.3")


def test_dropout_of_one_call_is_not_held_against_the_model():
    stock, ours = pair()
    stock.train(), ours.train()
    for model in (stock, ours):
        for layer in model.model.layers:
            layer.self_attn.attention_dropout = 0.3  # on the module only: the configuration says 0
    assert_untouched(stock, ours, "attention dropout is active")
    ours.eval()
    generate(ours, INPUTS)
    assert ours.relay.last.relayed


@pytest.mark.parametrize("module", ["transformers.integrations.neftune", "anywhere"])
def test_hooks_of_others(module):
    def noise(module, args, output):
        return output + 0.1 * torch.ones_like(output) / output.shape[1]

    noise.__module__ = module
    stock, ours = pair()
    for model in (stock, ours):
        model.model.embed_tokens.register_forward_hook(noise)
    assert_untouched(stock, ours, "a forward hook on Embedding")


def test_gradient_checkpointing():
    stock, ours = pair()
    for model in (stock, ours):
        model.train()
        model.model.gradient_checkpointing = True  # what the enabling method, renamed between versions, sets
    assert_untouched(stock, ours, "gradient checkpointing")


def test_training_mode_without_dropout_is_relayed_within_the_call():
    stock, ours = pair()
    stock.train(), ours.train()
    for _ in range(2):
        assert torch.equal(generate(ours, INPUTS), generate(stock, INPUTS))
        assert ours.relay.last.relayed
        assert ours.relay.last.prefix_tokens_reused == 0
    assert not ours.relay.prefixes


def test_the_hook_that_gradient_checkpointing_leaves_behind_is_no_reason():
    """Trainers switch checkpointing off for a generate() call; the hook that has inputs record gradients stays."""
    stock, ours = pair()
    for model in (stock, ours):
        model.train()
        model.enable_input_require_grads()
    assert ours.model.embed_tokens._forward_hooks
    assert torch.equal(generate(ours, INPUTS), generate(stock, INPUTS))
    assert ours.relay.last.relayed, ours.relay.last


@pytest.mark.parametrize("rope", ["dynamic", "longrope"])
@pytest.mark.parametrize("limit", [25, 200])
def test_rope_that_changes_with_length(rope, limit):
    parameters = {"rope_type": rope, "rope_theta": 10000.0, "factor": 4.0}
    options = {"max_position_embeddings": limit if rope == "dynamic" else 4 * limit}
    if rope == "longrope":
        factors = {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
        parameters = {**parameters, **factors, "original_max_position_embeddings": limit}
    stock, ours = pair("llama", rope_parameters=parameters, **options)
    if limit == 25:
        assert_untouched(stock, ours, "RoPE changes beyond 25 tokens")
    else:
        assert torch.equal(generate(ours, INPUTS), generate(stock, INPUTS))
        assert ours.relay.last.relayed, ours.relay.last


def test_generation_across_a_change_of_rope():
    parameters = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    stock, ours = pair("llama", rope_parameters=parameters, max_position_embeddings=32)
    for _ in range(2):
        assert torch.equal(generate(ours, INPUTS, max_new_tokens=20), generate(stock, INPUTS, max_new_tokens=20))
        assert ours.relay.last.relayed, ours.relay.last


def test_phi3_across_its_switch():
    factors = {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4, "factor": 4.0}
    parameters = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 32, **factors}
    options = {"original_max_position_embeddings": 32, "max_position_embeddings": 128}
    stock, ours = pair("phi3", rope_parameters=parameters, **options)
    for _ in range(2):
        assert torch.equal(generate(ours, INPUTS, max_new_tokens=20), generate(stock, INPUTS, max_new_tokens=20))
        assert ours.relay.last.relayed, ours.relay.last


def assert_type_untouched(stock, reason):
    ours = relay_hf.patch_model(copy.deepcopy(stock), policy="always")
    assert_untouched(stock, ours, reason)
    assert_untouched(stock, ours, reason)  # the second call has learnt from the first


def test_an_encoder_and_a_decoder():
    sizes = {"vocab_size": 97, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    config = AutoConfig.for_model("t5", **sizes, decoder_start_token_id=0)
    assert_type_untouched(AutoModelForSeq2SeqLM.from_config(config).eval(), "encoder-decoder")


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("openai-gpt", "generate() uses no cache"),
        ("deepseek_v32", "DynamicIndexedLayer"),
        ("recurrent_gemma", "keeps its recurrent state outside of the cache"),
        ("moshi", "attention mask"),  # has no window, the cache has; in Transformers before 5.23 it is made by hand
    ],
)
def test_models(model_type, reason):
    assert_type_untouched(tiny_model(model_type), reason)


@pytest.mark.parametrize(
    ("model_type", "reason"), [("xlstm", "generate() uses no cache"), ("deepseek_v32", "DynamicIndexedLayer")]
)
def test_a_cache_that_can_not_be_replaced_is_known_before_any_call(model_type, reason):
    ours = relay_hf.patch_model(tiny_model(model_type), policy="always")
    report = ours.relay.explain(INPUTS["input_ids"], INPUTS["attention_mask"])
    assert not report.relayed
    assert reason in report.reason
    with pytest.raises(relay_hf.RelayError, match=re.escape(reason)):
        ours.relay.warm([5] * 30)


def test_no_report_before_the_first_call_and_one_after_a_failed_one():
    _, ours = pair()
    assert ours.relay.last is None
    with pytest.raises(ValueError, match="not used by the model"):
        generate(ours, INPUTS, nonsense=3)
    assert "the call raised ValueError" in ours.relay.last.reason


def test_a_call_that_raises_when_the_model_is_looked_at_is_reported():
    """A forward without a signature: stock's generate() raises the same."""

    class Signatureless:
        __hash__ = None

        def __call__(self, *args, **kwargs):
            raise AssertionError("it is not reached")

        def __eq__(self, other):
            return True  # so `inspect` takes it for a builtin, and finds no signature

    stock, ours = (tiny_model("llama") for _ in range(2))
    relay_hf.patch_model(ours, policy="always")
    said = []
    for model in (stock, ours):
        model.forward = Signatureless()
        with pytest.raises((TypeError, ValueError)) as raised:
            model.generate(**prompts(20, (3, 5)), max_new_tokens=2)
        said.append((raised.type, str(raised.value).partition(" object at ")[0]))
    assert said[0] == said[1]
    assert f"the call raised {said[0][0].__name__}" in ours.relay.last.reason
    assert ours.relay.stats().calls == 1


def test_a_static_cache_by_default_of_the_model_is_not_the_callers_wish():
    stock, ours = pair()
    for model in (stock, ours):
        model.generation_config.cache_implementation = "static"
    assert torch.equal(generate(ours, INPUTS), generate(stock, INPUTS))
    assert ours.relay.last.relayed, ours.relay.last
    assert_untouched(stock, ours, "StaticCache", cache_implementation="static")
    config = copy.deepcopy(stock.generation_config)
    config.max_new_tokens = 4
    assert torch.equal(
        ours.generate(**INPUTS, generation_config=config), stock.generate(**INPUTS, generation_config=config)
    )
    assert "StaticCache" in ours.relay.last.reason


def test_nothing_that_goes_wrong_in_deciding_reaches_the_caller(monkeypatch):
    stock, ours = pair()
    monkeypatch.setattr(relay_hf.generation.sharing, "shared_runs", lambda prompts, own: 1 / 0)
    assert_untouched(stock, ours, "raised ZeroDivisionError")


def test_ids_out_of_the_vocabulary_are_one_clear_error():
    _, ours = pair()
    inputs = {name: value.clone() for name, value in INPUTS.items()}
    inputs["input_ids"][2, -1] = 97
    with pytest.raises(ValueError, match="input_ids must be token ids from 0 to 96, the model's vocabulary; got 97"):
        generate(ours, inputs)
    generate(ours, INPUTS)
    assert ours.relay.last.relayed


def test_a_model_that_fails_under_the_relay_goes_on_as_stock_with_the_reason(caplog):
    stock, ours = pair()
    relay_hf.patch_model(ours, trust=["*"])
    attention = ours.model.layers[1].self_attn
    forward, computed = attention.forward, []

    def own_attention(*args, **kwargs):
        computed.append(1)
        if kwargs["attention_mask"] is None and isinstance(kwargs[CACHE], relay_hf.RelayCache):
            raise TypeError("unsupported operand\nand pages more")
        return forward(*args, **kwargs)

    attention.forward = own_attention
    tried = []
    for _ in range(3):
        computed.clear()
        assert_untouched(stock, ours, "a relayed prefill raised TypeError: unsupported operand")
        assert "pages" not in ours.relay.last.reason
        assert "goes on as stock" in caplog.text
        tried.append(len(computed))
    assert tried == [13, 13, 12]  # twice is the model's fault: not tried again
    attention.forward = forward
    generate(ours, INPUTS)
    assert ours.relay.last.relayed  # until the model changes


def test_a_prefill_that_fails_leaves_nothing_in_a_cache_by_hand(monkeypatch):
    """The first layer has stored the row by then."""
    stock, ours = pair()
    relay_hf.patch_model(ours, trust=["*"])
    kind = type(ours.model.layers[1].self_attn)
    forward = kind.forward

    def own_attention(self, *args, **kwargs):
        if isinstance(kwargs[CACHE], relay_hf.RelayCache) and self.layer_idx == 1:
            raise TypeError("unsupported operand")
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(kind, "forward", own_attention)
    row = prompts(20, (5,))
    cache = relay_hf.RelayCache(ours.config)
    assert torch.equal(generate(ours, row, **{CACHE: cache}), generate(stock, row))
    assert "a relayed prefill raised TypeError" in ours.relay.last.reason
    assert cache.get_seq_length() == 25 + 11


def test_a_layer_that_leaves_the_attention_interface_after_the_first_step_raises():
    """Attending to less than was promised is never silent."""
    _, ours = pair()
    attention = ours.model.layers[1].self_attn

    def own_attention(hidden_states, **kwargs):
        key = attention.k_proj(hidden_states).view(*hidden_states.shape[:2], -1, attention.head_dim).transpose(1, 2)
        kwargs[CACHE].update(key, key, 1)
        return hidden_states, None

    class Swap(LogitsProcessor):
        def __call__(self, input_ids, scores):
            if input_ids.shape[1] > INPUTS["input_ids"].shape[1]:  # behind the first step, which stock could run again
                attention.forward = own_attention
            return scores

    with pytest.raises(relay_hf.RelayError, match=r"layers \[1\] did not"):
        generate(ours, INPUTS, logits_processor=LogitsProcessorList([Swap()]))
    del attention.forward
    assert torch.equal(generate(ours, INPUTS), generate(tiny_model("llama"), INPUTS))
    assert ours.relay.last.relayed


def test_a_layer_that_passes_the_attention_interface_by():
    stock, ours = pair()
    relay_hf.patch_model(ours, trust=["*"])
    for model in (stock, ours):
        attention = model.model.layers[1].self_attn
        attention.forward = lambda *args, hidden_states=None, **kwargs: (hidden_states, None)
    assert_untouched(stock, ours, "layers [1] did not")
