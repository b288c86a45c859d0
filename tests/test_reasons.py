"""Why calls are left to stock: one table of reasons, whose each is, and what is said of it aloud."""

import ast
import copy
import logging
import re
from html import escape
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import GenerationMixin, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

import relay_hf
from relay_hf.reasons import Reason
from relay_hf.report import RelayReport, RelayStats
from relay_hf.testing import VOCABULARY, prompts
from tests.models.expected import EXPECTED, ONE_LENGTH, RELAYED, STATE_SHARED
from tests.support.generating import CACHE, cache_of, generate
from tests.support.sweeps import all_but_swept
from tests.support.tiny_models import tiny_model

INPUTS = prompts(20, (3, 7, 1, 5))
ONE = {name: value[1:2] for name, value in INPUTS.items()}
PACKAGE = Path(relay_hf.__file__).parent


def patched(model_type="llama", policy="always", **overrides):
    return relay_hf.patch_model(tiny_model(model_type, **overrides), policy=policy)


def warnings_of(caplog):
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.WARNING and record.name == "relay_hf"
    ]


def with_dropout(model):
    model.train()
    model.model.layers[0].mlp.add_module("drop", nn.Dropout(0.1))


def with_checkpointing(model):
    model.train()
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()


def with_a_hook(model):
    model.model.layers[0].register_forward_hook(lambda *args: None)


def with_learnt_prompts(model):
    model.prepare_inputs_for_generation = lambda *args, **kwargs: GenerationMixin.prepare_inputs_for_generation(
        model, *args, **kwargs
    )


def with_dynamic_quantization(model):
    model.lm_head = torch.ao.nn.quantized.dynamic.Linear.from_float(prepared(model.lm_head))


def prepared(linear):
    linear.qconfig = torch.ao.quantization.default_dynamic_qconfig
    return linear


OF_THE_MODEL = {
    "training mode, with dropout": (with_dropout, Reason.DROPOUT),
    "training mode, with checkpoints": (with_checkpointing, Reason.CHECKPOINTING),
    "hooks": (with_a_hook, Reason.HOOK),
    "adapters that learn a prompt": (with_learnt_prompts, Reason.PREPARATION),
    "quantization": (with_dynamic_quantization, Reason.QUANTIZED_BY_BATCH),
}


@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.parametrize("policy", ["always", "auto"])
@pytest.mark.parametrize("what", OF_THE_MODEL)
def test_a_reason_of_the_model_is_told_once(what, policy, caplog):
    change, reason = OF_THE_MODEL[what]
    model = patched(policy=policy)
    change(model)
    with torch.no_grad():
        for _ in range(3):
            generate(model, INPUTS)
            report = model.relay.last
            assert (report.relayed, report.reason_source) == (False, "model"), report
    (said,) = warnings_of(caplog)
    assert said.startswith(f"relay_hf: a call of this LlamaForCausalLM goes on as stock: {report.reason}. ")
    assert report.reason.startswith(reason.words.partition("{")[0])


@pytest.mark.parametrize("model_type", ["bart", "openai-gpt", "recurrent_gemma", "deepseek_v32", "doge"])
def test_a_type_that_is_not_served_says_so_once(model_type, caplog):
    model = relay_hf.patch_model(tiny_model(model_type), policy="always")
    inputs = INPUTS if model_type != "bart" else {"input_ids": INPUTS["input_ids"]}
    for _ in range(2):
        generate(model, inputs, use_cache=True)
    if model_type == "bart":  # whose reason is that these rows are padded: another call may be relayed
        assert (model.relay.last.reason_source, warnings_of(caplog)) in [("call", []), (None, [])]
        return
    assert model.relay.last.reason_source == "model"
    assert len(warnings_of(caplog)) == 1


def t5():
    config = T5Config(
        vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    return T5ForConditionalGeneration(config).eval()


def learnt():
    model = tiny_model("llama")
    with_learnt_prompts(model)
    return model


NEVER = {
    "encoder-decoder": (t5, "encoder_decoder"),
    "no cache": (lambda: tiny_model("openai-gpt"), "no_cache"),
    "states outside of the cache": (lambda: tiny_model("recurrent_gemma"), "unfit_model"),
    "a layer of its own": (lambda: tiny_model("deepseek_v32"), "layer"),
    "learnt prompts": (learnt, "preparation"),
}


@pytest.mark.parametrize("what", NEVER)
def test_a_model_of_which_no_call_is_relayed_says_so_at_once(what, caplog):
    make, code = NEVER[what]
    model = relay_hf.patch_model(make())
    said = model.relay.explain(INPUTS, max_new_tokens=2)
    assert (said.relayed, said.reason_code) == (False, code)
    assert warnings_of(caplog) == [
        f"relay_hf: no call of this {type(model).__name__} is relayed: {said.reason}. All its calls go on as stock."
    ]
    assert f"relays no call: {said.reason}; " in repr(model.relay)
    assert f"<th>relays no call:</th><td>{escape(said.reason)}</td>" in model.relay._repr_html_()
    model.generate(**INPUTS, max_new_tokens=2)
    relay_hf.patch_model(model, policy="always")
    assert (model.relay.last.reason, len(warnings_of(caplog))) == (said.reason, 1)


def test_who_wants_no_call_relayed_is_not_warned_until_he_does(caplog):
    model = relay_hf.patch_model(t5(), policy="off")
    assert not warnings_of(caplog)
    model.relay.config = relay_hf.RelayConfig()
    assert len(warnings_of(caplog)) == 1


SERVED = (RELAYED, ONE_LENGTH, STATE_SHARED)


@pytest.mark.parametrize("model_type", all_but_swept([name for name, status in EXPECTED.items() if status in SERVED]))
def test_a_model_whose_calls_are_relayed_says_nothing_at_once(model_type, caplog):
    model = relay_hf.patch_model(tiny_model(model_type))
    assert not warnings_of(caplog)
    assert "relays no call" not in repr(model.relay) + model.relay._repr_html_()


OF_THE_CALL = {
    "no cache": (INPUTS, {"use_cache": False}),
    "scores of all tokens": (INPUTS, {"output_hidden_states": True, "return_dict_in_generate": True}),
    "another cache": (INPUTS, {"cache_implementation": "static"}),
    "an input": (INPUTS, {"token_type_ids": torch.zeros(4, 27, dtype=torch.int64)}),
    "nothing alike": ({"input_ids": torch.arange(3, 43).reshape(2, 20)}, {}),
    "another mode": (ONE, {"prompt_lookup_num_tokens": 3}),
    "positions": (INPUTS, {"position_ids": torch.arange(27)[None].repeat(4, 1) + 3}),
}


@pytest.mark.parametrize("what", OF_THE_CALL)
def test_a_reason_of_the_call_is_told_to_those_who_ask(what, caplog):
    inputs, options = OF_THE_CALL[what]
    model = patched("roberta" if what == "an input" else "llama")
    with caplog.at_level(logging.INFO, logger="relay_hf"):
        generate(model, inputs, **options)
    assert (model.relay.last.relayed, model.relay.last.reason_source) == (False, "call"), model.relay.last
    assert not warnings_of(caplog)
    assert model.relay.last.reason in caplog.text


class OwnLoop(LlamaForCausalLM):
    """A model with a decoding loop of its own, that does not call generate()'s prefill."""

    def _sample(self, input_ids, **kwargs):
        return torch.cat([input_ids, input_ids[:, -1:]], dim=1)


def own_loop():
    return relay_hf.patch_model(OwnLoop(tiny_model("llama").config).eval(), policy="always")


class HandsOver(LlamaForCausalLM):
    """A model that generates by a model inside, as some that take images do."""

    def generate(self, *args, **kwargs):
        return tiny_model("llama").generate(*args, **kwargs)


def hands_over():
    return relay_hf.patch_model(HandsOver(tiny_model("llama").config).eval(), policy="always")


def by_default(**options):
    model = patched()
    for name, value in options.items():
        setattr(model.generation_config, name, value)
    return model


def with_attention_dropout():
    model = patched()
    model.train()
    model.model.layers[0].self_attn.attention_dropout = 0.1
    return model


DEFAULTS = {
    "no cache": (lambda: by_default(use_cache=False), "use_cache=False"),
    "all outputs": (lambda: by_default(output_hidden_states=True), "output_hidden_states=True needs"),
    "a loop of its own": (own_loop, "the model's own decoding loop does not start with"),
    "a generate() of its own": (hands_over, "the model's own generate() does not come to Transformers' common prefill"),
    "attention dropout": (with_attention_dropout, "attention dropout is active (0.1)"),
}


@pytest.mark.parametrize("what", DEFAULTS)
def test_what_the_models_author_has_it_do_is_the_models_and_told_once(what, caplog):
    make, reason = DEFAULTS[what]
    model = make()
    with torch.no_grad():
        for _ in range(2):
            generate(model, INPUTS)
    assert (model.relay.last.relayed, model.relay.last.reason_source) == (False, "model"), model.relay.last
    assert model.relay.last.reason.startswith(reason)
    assert len(warnings_of(caplog)) == 1


def test_positions_that_generate_counts_otherwise_are_not_the_callers(monkeypatch, caplog):
    counted = GenerationMixin._prepare_position_ids_for_generation
    monkeypatch.setattr(
        GenerationMixin, "_prepare_position_ids_for_generation", lambda *args, **kwargs: counted(*args, **kwargs) + 1
    )
    model = relay_hf.patch_model(patched(), trust=[""])
    generate(model, INPUTS)
    assert model.relay.last.reason == "generate() counts positions otherwise than from the attention mask"
    assert model.relay.last.reason_source == "transformers"
    assert len(warnings_of(caplog)) == 1


def test_a_reason_is_told_once_with_and_without_a_returned_cache(caplog):
    model = patched()
    first = generate(model, INPUTS, return_dict_in_generate=True)
    with_a_hook(model)
    turn = {"input_ids": first.sequences, "attention_mask": torch.ones_like(first.sequences)}
    turn["attention_mask"][:, :27] = INPUTS["attention_mask"]
    turn["input_ids"] = torch.nn.functional.pad(turn["input_ids"], (0, 2), value=5)
    turn["attention_mask"] = torch.nn.functional.pad(turn["attention_mask"], (0, 2), value=1)
    generate(model, turn, **{CACHE: cache_of(first)})
    assert model.relay.last.reason.endswith("; continued on a DynamicCache")
    generate(model, INPUTS)
    assert len(warnings_of(caplog)) == 1


def test_policy_off_is_the_callers_own(caplog):
    model = patched(policy="off")
    with_a_hook(model)
    generate(model, INPUTS)
    assert (model.relay.last.reason, model.relay.last.reason_source) == ("policy 'off'", "call")
    assert not warnings_of(caplog)


def test_a_relayed_call_has_no_source_and_says_nothing(caplog):
    model = patched()
    generate(model, INPUTS)
    assert model.relay.last.reason_source is None
    assert model.relay.explain(**INPUTS).reason_source is None
    assert not warnings_of(caplog)


def test_another_reason_and_another_model_are_told_again(caplog):
    models = [patched() for _ in range(2)]
    for model in models:
        with_a_hook(model)
        generate(model, INPUTS)
    assert len(warnings_of(caplog)) == 2
    models[0].model.norm.register_forward_hook(lambda *args: None)
    for hooks in (models[0].model.layers[0]._forward_hooks,):
        hooks.clear()
    generate(models[0], INPUTS)
    assert len(warnings_of(caplog)) == 3
    assert "LlamaRMSNorm" in warnings_of(caplog)[-1]


def test_a_copy_of_a_model_does_not_say_again_what_was_said(caplog):
    model = patched()
    with_a_hook(model)
    generate(model, INPUTS)
    generate(copy.deepcopy(model), INPUTS)
    assert len(warnings_of(caplog)) == 1


class Adds:
    """What a release of Transformers may do: generate() gives every model one input more."""

    def __init__(self, prepare):
        self.prepare = prepare

    def __get__(self, model, kind):
        def prepared(*args, **kwargs):
            ids, name, inputs = self.prepare(model, *args, **kwargs)
            return ids, name, {**inputs, "cache_hints": torch.zeros(1)}

        return prepared


def test_an_input_that_generate_adds_by_itself_is_transformers(monkeypatch, caplog):
    monkeypatch.setattr(GenerationMixin, "_prepare_model_inputs", Adds(GenerationMixin._prepare_model_inputs))
    model = patched()
    forward = type(model).forward
    monkeypatch.setattr(
        type(model), "forward", lambda self, *args, cache_hints=None, **kwargs: forward(self, *args, **kwargs)
    )
    generate(model, INPUTS)
    report = model.relay.last
    assert (report.reason_source, report.reason) == (
        "transformers",
        "generate() gives the model an input that is not relayed, 'cache_hints'",
    )
    assert len(warnings_of(caplog)) == 1


def test_of_one_row_of_a_model_of_which_nothing_is_kept_the_reason_is_named(caplog):
    model = patched()
    model.hf_quantizer = SimpleNamespace(is_compileable=True)
    scale = nn.Parameter(torch.ones(1, dtype=torch.int8), requires_grad=False)
    model.model.layers[0].mlp.register_parameter("scale", scale)
    generate(model, ONE)
    assert model.relay.last.reason == "one row, of which nothing can be kept: the model is quantized"
    assert model.relay.last.reason_source == "model"
    assert len(warnings_of(caplog)) == 1
    relay_hf.patch_model(model, max_store_bytes=0)
    generate(model, ONE)
    assert model.relay.last.reason_source == "call"


def test_a_model_with_plain_weights_from_a_quantized_file_is_not_quantized():
    """As one from a GGUF file: Transformers leaves the mark on it."""
    model = patched()
    model.hf_quantizer = SimpleNamespace(is_compileable=True)
    for kept in (0, 20):
        generate(model, INPUTS)
        assert (model.relay.last.prefix_tokens_reused, model.relay.last.unkept_reason) == (kept, "")


UNKEPT = {
    "quantized": (lambda model: setattr(model, "hf_quantizer", Int8(model)), "the model is quantized"),
    "in training mode": (lambda model: model.train(), "the model is in training mode"),
    "a forward replaced": (
        lambda model: setattr(model.lm_head, "forward", model.lm_head.forward),
        "the forward of a Linear was replaced",
    ),
    "sharded": (
        lambda model: model.lm_head.register_parameter("weight", OfItsOwnKind(model.lm_head.weight.data)),
        "a parameter is a OfItsOwnKind",
    ),
    "no budget": (lambda model: relay_hf.patch_model(model, max_store_bytes=0), "max_store_bytes is 0"),
    "a small budget": (
        lambda model: relay_hf.patch_model(model, max_store_bytes=100),
        "a prefix of 5.3 KiB does not fit into max_store_bytes, 100 B",
    ),
}


class Int8:
    is_compileable = True

    def __init__(self, model):
        model.lm_head.register_parameter("scale", nn.Parameter(torch.ones(1, dtype=torch.int8), requires_grad=False))


class OfItsOwnKind(nn.Parameter):
    pass


@pytest.mark.parametrize("what", UNKEPT)
def test_a_relayed_call_says_why_nothing_is_kept(what, caplog):
    change, why = UNKEPT[what]
    model = patched()
    relay_hf.patch_model(model, trust=["*"])
    change(model)
    with caplog.at_level(logging.INFO, logger="relay_hf"):
        generate(model, INPUTS)
    assert (model.relay.last.relayed, model.relay.last.unkept_reason) == (True, why)
    assert why.startswith(Reason[model.relay.last.unkept_code.upper()].words.partition("{")[0] or "?")
    assert f"nothing kept: {why}" in repr(model.relay.last)
    assert f"nothing kept: {why}" in caplog.text
    assert model.relay.prefixes == ()
    if "budget" not in what:
        with pytest.raises(relay_hf.RelayError, match=why):
            model.relay.warm(INPUTS["input_ids"][1, 7:27])


def test_the_table_has_each_reason_once_and_every_one_is_used():
    words = [(reason.source, reason.words) for reason in Reason]
    assert len(set(words)) == len(words)
    used = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Reason":
                used.add(node.attr)
    assert used == {reason.name for reason in Reason}


def test_no_report_has_a_reason_that_is_not_from_the_table():
    """Reports are made by `RelayReport.of`, which takes a reason; `**` is a report that is read back."""
    made = [
        (path.name, {keyword.arg for keyword in node.keywords}, node.args)
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("RelayReport", "Explanation")
    ]
    assert len(made) == 3
    for name, keywords, args in made:
        assert None in keywords, name
        assert not args, name


def test_codes_are_names_in_lower_case_and_of_refusals_alone_there_is_a_source():
    assert {"short_prefix", "policy_off", "rows_alike", "kept_prefix"} <= {reason.code for reason in Reason}
    assert all(re.fullmatch("[a-z][a-z_]+", reason.code) for reason in Reason)
    relayed = [reason for reason in Reason if reason.source is None]
    assert relayed == list(Reason)[: len(relayed)]


RELAYED = {
    "rows_alike": (INPUTS, False),
    "kept_prefix": (INPUTS, True),
    "row_kept": (ONE, False),
    "some_rows_alike": (
        {"input_ids": torch.cat([torch.arange(3, 33)[None].repeat(2, 1), torch.arange(40, 70)[None]])},
        False,
    ),
}


@pytest.mark.parametrize("code", RELAYED)
def test_a_relayed_call_has_a_code_too(code):
    inputs, twice = RELAYED[code]
    model = patched()
    for _ in range(1 + twice):
        generate(model, inputs)
    assert (model.relay.last.reason_code, model.relay.last.reason_source) == (code, None)
    assert model.relay.last.reason == Reason[code.upper()].why(more="")
    assert model.relay.last.relayed


def test_totals_count_the_calls_of_each_code():
    model = patched()
    for options in ({}, {}, {"use_cache": False}):
        generate(model, INPUTS, **options)
    found = model.relay.stats()
    assert found.calls_by_code == {"rows_alike": 1, "kept_prefix": 1, "without_cache": 1}
    found.calls_by_code.clear()  # a copy
    assert len(model.relay.stats().calls_by_code) == 3


def test_totals_that_an_earlier_version_has_pickled_go_on_counting():
    stats = RelayStats.__new__(RelayStats)
    stats.__setstate__({"calls": 2, "relayed_calls": 1})
    stats.add(RelayReport.of(Reason.POLICY_OFF.of()))
    assert (stats.calls, stats.prompt_tokens_saved, stats.calls_by_code) == (3, 0, {"policy_off": 1})
