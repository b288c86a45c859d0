"""`explain` says of a call what the call then does: in each mode, with the call's own arguments, and without a trace.

The mode matrix (`tests/modes`) and the fuzzer ask it before each of their calls too.
"""

import copy
import gc
import threading
import weakref

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    DynamicCache,
    GenerationConfig,
    PreTrainedTokenizerFast,
    StaticCache,
)
from transformers.generation import BaseStreamer

import relay_hf
from relay_hf.testing import VOCABULARY, prompts
from tests.modes import loops
from tests.support.foretold import FORETOLD, differences, state_of
from tests.support.generating import CACHE, cache_of, generate
from tests.support.model_snapshot import snapshot
from tests.support.tiny_models import tiny_model
from tests.traps import images

PREFIX = 20
INPUTS = prompts(PREFIX, (3, 7, 1, 5))
ONE = {name: value[1:2] for name, value in INPUTS.items()}
NO_PREFILL = "this mode of generate() does not start with its common prefill"
ALIKE = "the rows start alike"


def patched(model_type="llama", policy="always", **overrides):
    return relay_hf.patch_model(tiny_model(model_type, **overrides), policy=policy)


def foretold(model, inputs, **options):
    """What `explain` and then the call's report say: the same, and `explain` leaves no trace."""
    before, made_of = state_of(model.relay), snapshot(model)
    said = model.relay.explain(**inputs, **options)
    assert state_of(model.relay) == before
    assert snapshot(model) == made_of
    model.generate(**inputs, **options)
    assert differences(said, model.relay.last) == [], (said, model.relay.last)
    return said


def config_of(**options):
    return GenerationConfig(pad_token_id=0, eos_token_id=2, **options)


MODES = {
    "greedy": (INPUTS, {}, ALIKE),
    "sampling": (INPUTS, {"do_sample": True}, ALIKE),
    "beams": (INPUTS, {"num_beams": 3}, ALIKE),
    "several answers": (ONE, {"do_sample": True, "num_return_sequences": 3}, ALIKE),
    "a single row": (ONE, {}, "kept for later calls"),
    "chunks": (INPUTS, {"prefill_chunk_size": 4}, ALIKE),
    "prompt lookup": (ONE, {"prompt_lookup_num_tokens": 3}, NO_PREFILL),
    "no cache": (INPUTS, {"use_cache": False}, "use_cache=False"),
    "attentions": (INPUTS, {"output_attentions": True}, "output_attentions=True"),
    "a static cache": (INPUTS, {"cache_implementation": "static"}, "a StaticCache here"),
    "a loop from the prefill": (INPUTS, {"custom_generate": loops.from_the_prefill}, ALIKE),
    "a loop of its own": (INPUTS, {"custom_generate": loops.with_a_cache_of_its_own}, NO_PREFILL),
    "a configuration": (INPUTS, {"generation_config": config_of(num_beams=2, max_new_tokens=3)}, ALIKE),
}


@pytest.mark.parametrize("mode", MODES)
def test_of_a_mode(mode):
    inputs, options, reason = MODES[mode]
    eager = {"attn_implementation": "eager"} if mode == "attentions" else {}
    new = {} if mode == "a configuration" else {"max_new_tokens": 3}
    said = foretold(patched(**eager), inputs, **new, **options)
    assert reason in said.reason


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("falcon_h1", ALIKE),
        ("lfm2", ALIKE),
        ("mamba", ALIKE),
        ("deepseek_v3", ALIKE),
        ("xlstm", "generate() uses no cache"),
    ],
)
def test_of_a_model(model_type, reason):
    assert reason in foretold(patched(model_type), INPUTS, max_new_tokens=3).reason


def test_of_an_encoder_and_a_decoder():
    config = AutoConfig.for_model("bart", vocab_size=VOCABULARY, d_model=16, encoder_layers=1, decoder_layers=1)
    model = relay_hf.patch_model(AutoModelForSeq2SeqLM.from_config(config).eval(), policy="always")
    encoded = []
    model.get_encoder().register_forward_hook(lambda *args: encoded.append(model.relay.last))
    for beams in (1, 2):
        said = foretold(model, INPUTS, max_new_tokens=3, num_beams=beams)
        assert (said.reason, said.rows) == ("encoder-decoder models are not relayed", 4 * beams)
        assert said.prompt_tokens_computed is None  # the decoder's start is no prompt
    assert len(encoded) == 2  # by the two calls


@pytest.mark.parametrize(("model_type", "answers"), [("gemma3", 1), ("gemma3", 2), ("got_ocr2", 2), ("qwen2_vl", 1)])
def test_of_images(model_type, answers):
    """Since Transformers 5.23 generate() encodes them before its prefill."""
    ours = relay_hf.patch_model(getattr(images, model_type)()[1], policy="always")
    options = {"max_new_tokens": 2, "do_sample": True, "num_return_sequences": answers}
    said = foretold(ours, images.with_images(model_type), **options)
    assert said.reason.startswith("the prompts have images, video or audio (")


@pytest.mark.parametrize(("width", "layers", "new", "relayed"), [(384, 3, 1, True), (512, 2, 80, False)])
def test_the_number_of_new_tokens_decides_under_auto(width, layers, new, relayed):
    """With generate()'s default of 20, the verdict on each of these models would be the other one."""
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8, "max_position_embeddings": 512}
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers}
    ours, inputs = patched(policy="auto", **sizes, **heads), prompts(128, (8, 8, 8))
    relay_hf.patch_model(ours, linears=False)  # by oneDNN both would be relayed
    assert foretold(ours, inputs, max_new_tokens=new).relayed == relayed
    ours.relay.clear()
    assert ours.relay.explain(**inputs, max_new_tokens=20).relayed != relayed


def test_of_given_and_returned_caches():
    ours = patched()
    first = ours.generate(**INPUTS, max_new_tokens=3, min_new_tokens=3, return_dict_in_generate=True)
    returned, mask = cache_of(first), torch.cat([INPUTS["attention_mask"], torch.ones(4, 6, dtype=torch.int64)], dim=1)
    turn = {"input_ids": torch.cat([first.sequences, torch.arange(5, 17).view(4, 3)], dim=1), "attention_mask": mask}
    columns, rows = returned.get_seq_length(), vars(returned.rows).copy()
    for options, reason in (({}, "a returned cache, continued"), ({"use_cache": False}, "continued on a DynamicCache")):
        given = copy.deepcopy(returned)
        said = ours.relay.explain(**turn, **{CACHE: given}, max_new_tokens=2, **options)
        assert reason in said.reason
        assert (given.get_seq_length(), given.is_shared) == (columns, True)
        ours.generate(**turn, **{CACHE: given}, max_new_tokens=2, **options)
        assert differences(said, ours.relay.last) == []
    assert ours.relay.explain(**turn, **{CACHE: returned}, max_new_tokens=2).relayed
    assert {name: value is rows[name] for name, value in vars(returned.rows).items()} == dict.fromkeys(rows, True)
    for cache, reason in (
        (DynamicCache(config=ours.config), f"{CACHE} was given by the caller"),
        (StaticCache(config=ours.config, max_cache_len=64), f"{CACHE} was given by the caller"),
        (relay_hf.RelayCache(ours.config), "a kept prefix"),
    ):
        marks = vars(cache).copy()
        assert reason in ours.relay.explain(**INPUTS, **{CACHE: cache}, max_new_tokens=2).reason
        assert vars(cache) == marks  # generate() marks a cache that it is given


def test_a_forward_ends_before_hooks_of_others_begin():
    """Such a hook may fetch weights that lie elsewhere, as accelerate's does."""
    ours = patched()
    ours.register_forward_pre_hook(lambda *args: pytest.fail("the forward began"))
    said = ours.relay.explain(**INPUTS, max_new_tokens=3, custom_generate=loops.with_a_cache_of_its_own)
    assert said.reason == NO_PREFILL


def test_continuous_batching_is_not_started():
    ours, threads = patched(), threading.active_count()
    said = ours.relay.explain(INPUTS["input_ids"], max_new_tokens=3, cache_implementation="paged")
    assert (said.reason, threading.active_count()) == (NO_PREFILL, threads)


def test_nothing_of_the_callers_is_called():
    class Streamer(BaseStreamer):
        def put(self, value):
            pytest.fail("the streamer got tokens")

        def end(self):
            pytest.fail("the streamer got an end")

    def called(*args):
        pytest.fail("the caller's code was called")

    ours = patched()
    ours.generate(**INPUTS, max_new_tokens=2)
    given = {"logits_processor": [called], "stopping_criteria": [called], "prefix_allowed_tokens_fn": called}
    random = torch.get_rng_state()
    for streamer in (Streamer(), type("Duck", (), {"put": Streamer.put, "end": Streamer.end})()):
        said = ours.relay.explain(**INPUTS, max_new_tokens=3, do_sample=True, streamer=streamer, **given)
        assert said.relayed
    assert torch.equal(torch.get_rng_state(), random)


def test_a_changed_model_keeps_its_prefixes_until_its_next_call():
    ours = patched()
    ours.generate(**INPUTS, max_new_tokens=2)
    with torch.no_grad():
        ours.lm_head.weight.add_(0.1)
    kept = ours.relay.prefixes
    assert kept
    assert foretold_reused(ours) == 0
    assert ours.relay.prefixes == kept
    with torch.no_grad():
        ours.lm_head.weight.sub_(0.1)


def foretold_reused(ours):
    return ours.relay.explain(**INPUTS, max_new_tokens=2).prefix_tokens_reused


def test_what_was_used_latest_stays_so():
    ours = patched()
    first, second = prompts(PREFIX, (3, 5)), prompts(PREFIX, (3, 5), seed=9)
    for inputs in (first, second):
        ours.generate(**inputs, max_new_tokens=2)
    order = ours.relay.prefixes
    assert ours.relay.explain(**first, max_new_tokens=2).prefix_tokens_reused == PREFIX
    assert ours.relay.prefixes == order
    ours.generate(**first, max_new_tokens=2)
    assert ours.relay.prefixes != order


def test_wrong_arguments_raise_what_generate_raises():
    ours = patched()
    for wrong in ({"nonsense": 3}, {"max_new_tokens": 0}, {"num_return_sequences": 2}):
        with pytest.raises(ValueError) as said:  # noqa: PT011 - the message is compared below
            ours.relay.explain(**INPUTS, **wrong)
        with pytest.raises(ValueError) as raised:  # noqa: PT011
            ours.generate(**INPUTS, **wrong)
        assert str(said.value) == str(raised.value)
    with pytest.raises(ValueError, match=r"input_ids must be \[rows, tokens\]; got \(3,\)"):
        ours.relay.explain(torch.tensor([3, 4, 5]))
    with pytest.raises(ValueError, match="got 500"):
        ours.relay.explain([[500, 3], [4, 5]], max_new_tokens=2)


def test_arguments_by_place_and_by_name():
    ours, ids, mask = patched(), INPUTS["input_ids"], INPUTS["attention_mask"]
    expected = [getattr(ours.relay.explain(**INPUTS, max_new_tokens=3), name) for name in FORETOLD]
    config = config_of(max_new_tokens=3)
    for said in (
        ours.relay.explain(ids, mask, max_new_tokens=3),
        ours.relay.explain(ids.tolist(), mask, max_new_tokens=3),
        ours.relay.explain(input_ids=ids.tolist(), attention_mask=mask, max_new_tokens=3),
        ours.relay.explain(inputs=ids, attention_mask=mask, max_new_tokens=3),
        ours.relay.explain(ids, config, attention_mask=mask),
        ours.relay.explain(ids, None, None, attention_mask=mask, max_new_tokens=3),
    ):
        assert [getattr(said, name) for name in FORETOLD] == expected
    with torch.device("meta"):
        assert ours.relay.explain(ids.tolist(), mask, max_new_tokens=3).relayed


def test_embeddings_in_the_place_of_ids():
    ours = patched()
    embedded = ours.get_input_embeddings()(INPUTS["input_ids"]).detach()
    inputs = {"inputs_embeds": embedded, "attention_mask": INPUTS["attention_mask"]}
    assert "'inputs_embeds'" in foretold(ours, inputs, max_new_tokens=3).reason


def test_nothing_of_what_is_kept_stays_alive_for_an_explanation():
    """Without the garbage collector, which does not know how much memory a tensor holds."""
    ours = relay_hf.patch_model(tiny_model("llama"), policy="always")
    generate(ours, INPUTS)
    kept = weakref.ref(next(iter(ours.relay.prefixes)).run)
    gc.disable()
    try:
        assert ours.relay.explain(**INPUTS, max_new_tokens=2).prefix_tokens_reused
        ours.relay.clear()
        assert kept() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("edit", [False, True])
def test_a_returned_cache_is_neither_copied_nor_joined(edit, monkeypatch):
    ours = patched()
    first = ours.generate(**INPUTS, max_new_tokens=3, min_new_tokens=3, return_dict_in_generate=True)
    cache = cache_of(first)
    if edit:
        cache.layers[0].keys.mul_(2)
    turn = {"input_ids": torch.nn.functional.pad(first.sequences, (0, 3), value=5)}
    turn["attention_mask"] = torch.nn.functional.pad(INPUTS["attention_mask"], (0, 6), value=1)
    before = [(layer, type(layer), vars(layer).copy()) for layer in cache.layers]
    rows, attributes = vars(cache.rows).copy(), vars(cache).copy()
    monkeypatch.setattr(relay_hf.RelayCache, "__getstate__", lambda cache: pytest.fail("the cache was copied"))
    monkeypatch.setattr(type(cache.layers[0]), "__getstate__", lambda layer: pytest.fail("a layer was copied"))
    said = ours.relay.explain(**turn, **{CACHE: cache}, max_new_tokens=2)
    monkeypatch.undo()
    assert all(type(layer) is kind and vars(layer) == held for layer, kind, held in before)
    assert (vars(cache.rows), vars(cache)) == (rows, attributes)
    ours.generate(**turn, **{CACHE: cache}, max_new_tokens=2)
    assert differences(said, ours.relay.last) == []
    assert ours.relay.last.relayed != edit


def test_arguments_that_generate_does_not_take_by_position_are_its_error():
    """None counts as an argument too."""
    ours, surplus = patched(), (None,) * 12
    for ask in (ours.generate, ours.relay.explain):
        with pytest.raises(TypeError, match="positional arguments"):
            ask(INPUTS["input_ids"], None, *surplus)


def test_two_masks_are_an_error():
    mask = INPUTS["attention_mask"]
    with pytest.raises(TypeError, match="two masks"):
        patched().relay.explain(INPUTS["input_ids"], mask, attention_mask=mask)


TEXTS = ["a b c d e f g h i j k l m n o p q r s t", "a b c d e f g h i j k l m n o p q r s t u v"]


def tokenizer_of(padding="<pad>"):
    """One token a word, behind a first one that marks the start."""
    words = ["<pad>", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz"]
    made = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="</s>"))
    made.pre_tokenizer = Whitespace()
    made.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token=padding, padding_side="right")


GIVEN = {
    "what a tokenizer returns": lambda tokenizer: ((padded(tokenizer),), {}),
    "a dictionary": lambda tokenizer: ((dict(padded(tokenizer)),), {}),
    "by name": lambda tokenizer: ((), dict(padded(tokenizer))),
    "lists by name": lambda tokenizer: ((), {name: each.tolist() for name, each in padded(tokenizer).items()}),
    "lists": lambda tokenizer: ((tokenizer(TEXTS, padding=True, padding_side="left"),), {}),
    "arrays": lambda tokenizer: ((tokenizer(TEXTS, padding=True, padding_side="left", return_tensors="np"),), {}),
    "texts": lambda tokenizer: ((TEXTS,), {"tokenizer": tokenizer}),
    "texts by generate()'s name": lambda tokenizer: ((), {"inputs": TEXTS, "tokenizer": tokenizer}),
    "texts by the name of ids": lambda tokenizer: ((), {"input_ids": TEXTS, "tokenizer": tokenizer}),
}


def padded(tokenizer):
    return tokenizer(TEXTS, padding=True, padding_side="left", return_tensors="pt")


@pytest.mark.parametrize("what", GIVEN)
def test_it_takes_what_a_tokenizer_gives(what):
    model, tokenizer = patched(), tokenizer_of()
    args, kwargs = GIVEN[what](tokenizer)
    said = model.relay.explain(*args, **kwargs, max_new_tokens=3, num_beams=2, num_return_sequences=2)
    model.generate(**padded(tokenizer), max_new_tokens=3, num_beams=2, num_return_sequences=2)
    assert differences(said, model.relay.last) == []
    assert (said.rows, said.prefix_length, said.prompt_tokens_computed + said.prompt_tokens_saved) == (4, 20, 88)


def test_one_text_is_a_row():
    model, tokenizer = patched(), tokenizer_of(padding=None)
    for given in (tokenizer(TEXTS[0]), TEXTS[0], TEXTS[:1]):
        said = model.relay.explain(given, tokenizer=tokenizer, max_new_tokens=3, do_sample=True, num_return_sequences=3)
        assert (said.rows, said.prefix_length) == (3, 20)


def test_a_tokenizer_that_reads_text_is_left_as_it_was():
    model, tokenizer = patched(), tokenizer_of()
    before = tokenizer.padding_side, tokenizer.backend_tokenizer.to_str(), tokenizer.init_kwargs.copy()
    model.relay.explain(TEXTS, tokenizer=tokenizer, max_new_tokens=3)
    model.relay.warm(TEXTS[0], tokenizer)
    assert (tokenizer.padding_side, tokenizer.backend_tokenizer.to_str(), tokenizer.init_kwargs) == before


PREFIXES = {
    "a text": lambda tokenizer: TEXTS[0],
    "a list of one text": lambda tokenizer: TEXTS[:1],
    "what a tokenizer returns": lambda tokenizer: tokenizer(TEXTS[0]),
    "that as tensors, padded": lambda tokenizer: tokenizer(
        TEXTS[:1], padding="max_length", max_length=30, return_tensors="pt"
    ),
    "a dictionary of ids": lambda tokenizer: {"input_ids": tokenizer(TEXTS[0])["input_ids"]},
}


@pytest.mark.parametrize("what", PREFIXES)
def test_warm_takes_what_explain_takes(what):
    tokenizer = tokenizer_of()
    prefix = patched().relay.warm(PREFIXES[what](tokenizer), tokenizer)
    assert prefix.ids.tolist() == tokenizer(TEXTS[0])["input_ids"]


WRONG_PREFIXES = {
    "texts": (TEXTS, "text_or_ids must be one text; got 2"),
    "rows": ({"input_ids": INPUTS["input_ids"], "attention_mask": INPUTS["attention_mask"]}, "at least one integer"),
    "no ids": ({"pixel_values": torch.zeros(1)}, "text_or_ids must hold input_ids; got 'pixel_values'"),
}


@pytest.mark.parametrize("what", WRONG_PREFIXES)
def test_warm_takes_one_text_alone(what):
    given, message = WRONG_PREFIXES[what]
    with pytest.raises(ValueError, match=message):
        patched().relay.warm(given, tokenizer_of())


WRONG = {
    "no tokenizer": (
        (TEXTS,),
        {},
        ValueError,
        r"input_ids is text, so tokenizer is needed; got None\. Pass tokenizer=",
    ),
    "no pad token": ((TEXTS,), {"tokenizer": tokenizer_of(None)}, ValueError, "tokenizer must have a pad token"),
    "no tokenizer of Transformers": (
        (TEXTS,),
        {"tokenizer": tokenizer_of().backend_tokenizer},
        TypeError,
        "tokenizer must be a tokenizer of Transformers; got Tokenizer",
    ),
    "rows of other lengths": ((tokenizer_of()(TEXTS),), {}, ValueError, "input_ids must be .* Call the tokenizer with"),
    "ids twice": ((INPUTS,), {"input_ids": INPUTS["input_ids"]}, TypeError, "got input_ids twice"),
    "a mask twice": ((INPUTS, INPUTS["attention_mask"]), {}, TypeError, "two masks"),
    "an empty list": (([],), {}, ValueError, r"input_ids must be \[rows, tokens\]; got \(0,\)"),
    "no rows": ((5,), {}, ValueError, r"input_ids must be \[rows, tokens\]; got \(\)"),
    "messages": (([{"role": "user"}],), {}, ValueError, "input_ids must be a tensor"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_read_is_an_error_that_says_what_to_do(what):
    args, kwargs, kind, message = WRONG[what]
    with pytest.raises(kind, match=message):
        patched().relay.explain(*args, **kwargs)
