"""Equal placeholders are not equal images; text alone, in planes of positions and of token types that are all 0."""

import pytest
import torch

from relay_hf.generation import eligibility, prefix_prefill
from relay_hf.testing import prompts
from tests.models.trial import TOLERANCE
from tests.support.generating import CACHE, cache_of
from tests.support.tiny_models import tiny_multimodal_model

from . import images
from .compare import (
    LEAST_WRONG,
    RECENT,
    all_inputs_known,
    assert_relayed,
    assert_untouched,
    assert_wrong,
    beside_a_patched_copy,
    error,
    pair,
    run,
    then,
)

KINDS = ["gemma3", "git", "got_ocr2", "qwen2_vl"]
NOT_RELAYED = "pixel_values), on which what follows them depends"
GIVEN = "position_ids were given by the caller"
TYPED = "token types other than 0 tell images, video or audio from text (token_type_ids)"


def build(model_type):
    return getattr(images, model_type)()


@pytest.mark.parametrize("model_type", KINDS)
def test_rows_with_other_images_are_untouched(model_type):
    models, inputs = build(model_type), images.with_images(model_type)
    assert_untouched(models, inputs, NOT_RELAYED)
    others = {**inputs, "pixel_values": -inputs["pixel_values"]}
    assert error(run(models[0], inputs), run(models[0], others)) > LEAST_WRONG  # the images are seen


@pytest.mark.parametrize("model_type", KINDS)
def test_rows_with_one_image_are_untouched(model_type):
    inputs = images.with_images(model_type)
    pixels = inputs["pixel_values"]
    inputs["pixel_values"] = pixels[: len(pixels) // 3].repeat(3, *[1] * (pixels.dim() - 1))
    assert_untouched(build(model_type), inputs, NOT_RELAYED)


def test_images_before_the_text_need_the_guard(monkeypatch):
    """Silently: its prefix is prefilled without any image."""
    all_inputs_known(monkeypatch)
    assert_wrong(build("git"), images.with_images("git"))


@pytest.mark.parametrize("model_type", ["gemma3", "got_ocr2", "qwen2_vl"])
def test_images_in_the_text_need_the_guard(model_type, monkeypatch):
    """Not silently: the rows' own tokens have images and no placeholder, or vision attends inside of their forward."""
    all_inputs_known(monkeypatch)
    monkeypatch.setattr(eligibility, "position_refusal", lambda *args: None)
    mismatch = "a relayed prefill raised ValueError: Image features and image tokens do not match"
    reason = mismatch if RECENT or model_type == "got_ocr2" else "rewrites its attention masks in its own way"
    assert_untouched(build(model_type), images.with_images(model_type), reason)


def text_then_images(models, model_type):
    """The text alone is kept with its placeholders; then the same text comes with images."""
    inputs = images.with_images(model_type)
    text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    for model in models:
        run(model, text)
    assert [len(kept) for kept in models[1].relay.prefixes] == [20]
    return error(*(run(model, inputs) for model in models))


@pytest.mark.parametrize("model_type", ["gemma3", "git", "got_ocr2"])
def test_a_kept_text_does_not_stand_for_images(model_type):
    models = build(model_type)
    assert text_then_images(models, model_type) <= TOLERANCE
    assert NOT_RELAYED in models[1].relay.last.reason


def test_a_kept_text_needs_the_guard_against_images(monkeypatch):
    all_inputs_known(monkeypatch)
    models = build("git")
    assert text_then_images(models, "git") > LEAST_WRONG
    assert models[1].relay.last.prefix_tokens_reused == 20


TEXT, PADDED = prompts(20, (5, 5, 5)), prompts(20, (3, 7, 1, 5))


def typed(inputs, *names, of=0):
    """The inputs as a processor returns them, which says what each token is."""
    return {**inputs, **{name: torch.full_like(inputs["input_ids"], of) for name in names}}


def test_planes_of_positions_in_which_text_is_alike_are_relayed():
    """Qwen's kin make them for text, too. The prefix is then kept from call to call."""
    models = images.qwen2_vl()
    assert_relayed(models, TEXT)
    assert_relayed(models, PADDED)
    assert models[1].model.rope_deltas.tolist() == models[0].model.rope_deltas.tolist() == [[0]] * 4


CALLS = {
    "beams": {"num_beams": 2, "num_return_sequences": 2},
    "several sequences": {"num_return_sequences": 2, "do_sample": True},
    "chunks": {"prefill_chunk_size": 3},
}
if not RECENT:  # stock cuts chunks from rows instead of columns, and raises
    del CALLS["chunks"]


MODES = [("qwen2_vl", what) for what in CALLS] + [("qwen3_5", "beams"), ("qwen3_5", "several sequences")]


@pytest.mark.parametrize(("model_type", "what"), MODES)
def test_planes_of_positions_are_relayed_in_every_mode(model_type, what):
    """Of three rows, which are as many as planes of positions: a plane is no row."""
    models = images.qwen2_vl() if model_type == "qwen2_vl" else beside_a_patched_copy(tiny_multimodal_model("qwen3_5"))
    outputs = []
    for model in models:
        torch.manual_seed(0)
        outputs.append(run(model, {name: value[1:] for name, value in PADDED.items()}, **CALLS[what]))
    assert error(*outputs) <= TOLERANCE
    assert models[1].relay.last.relayed, models[1].relay.last


TYPES = {"qwen2_vl": "mm_token_type_ids", "gemma3": "token_type_ids"}


@pytest.mark.parametrize("model_type", TYPES)
def test_a_turn_on_a_returned_cache_goes_on_in_planes_and_with_token_types(model_type):
    outputs = []
    models = build(model_type)
    for model in models:
        inputs = typed(PADDED, TYPES[model_type])
        first = run(model, inputs, eos_token_id=None)
        turn = typed(then(first, inputs), TYPES[model_type])
        outputs.append(run(model, turn, **{CACHE: cache_of(first)}))
    assert error(*outputs) <= TOLERANCE
    assert models[1].relay.last.reason == "a returned cache, continued"


def test_a_kept_text_is_used_after_images():
    """A call with images leaves on the model what they have shifted."""
    models = images.qwen2_vl()
    for model in models:
        run(model, TEXT)
        run(model, images.with_images("qwen2_vl"))
    assert error(*(run(model, TEXT) for model in models)) <= TOLERANCE
    assert models[1].relay.last.prefix_tokens_reused == 20


@pytest.mark.parametrize("model_type", TYPES)
def test_token_types_of_text_are_relayed(model_type):
    models, types = build(model_type), TYPES[model_type]
    assert_relayed(models, typed(TEXT, types))
    assert_relayed(models, typed(PADDED, types))
    assert_relayed(models, typed(PADDED, types), num_beams=2)
    for inputs in (TEXT, typed(TEXT, types)):  # what was kept with types is there without, and the other way round
        assert error(*(run(model, inputs) for model in models)) <= TOLERANCE
        assert models[1].relay.last.prefix_tokens_reused == 20


def test_token_types_of_images_are_untouched():
    inputs = typed(TEXT, "token_type_ids")
    inputs["token_type_ids"][:, 6:10] = 1
    assert_untouched(build("gemma3"), inputs, TYPED)


def test_token_types_of_images_need_the_guard(monkeypatch):
    """Gemma 3 attends to all of what they call an image."""
    inputs = typed(TEXT, "token_type_ids")
    inputs["token_type_ids"][:, 6:10] = 1
    all_inputs_known(monkeypatch)
    assert_wrong(build("gemma3"), inputs)


def test_a_token_type_of_a_text_model_is_one_more_token():
    inputs = typed(TEXT, "token_type_ids")
    assert_untouched(pair("gpt2"), inputs, "the call has an input that is not relayed, 'token_type_ids'")


def test_a_token_type_of_a_text_model_needs_the_guard(monkeypatch):
    monkeypatch.setattr(eligibility, "takes_media", lambda model: True)
    assert_wrong(pair("gpt2"), typed(TEXT, "token_type_ids"))


def grid():
    """Positions of the caller: height and width of what stands in the prefix go their own ways."""
    positions = torch.arange(25).repeat(3, 3, 1)
    positions[1:, :, 6:10] = torch.tensor([6, 6, 7, 7])
    positions[1, :, 12:] -= 3
    return positions


def test_planes_of_positions_that_are_given_to_a_text_model():
    assert_untouched(pair("cohere_compass_text"), TEXT, GIVEN, position_ids=grid())
    assert_untouched(images.qwen2_vl(), TEXT, GIVEN, position_ids=grid())


def test_planes_of_positions_that_are_given_and_alike_are_relayed():
    assert_relayed(pair("cohere_compass_text"), TEXT, position_ids=torch.arange(25).repeat(3, 3, 1))


def test_planes_of_positions_need_the_guard(monkeypatch):
    monkeypatch.setattr(eligibility, "position_refusal", lambda *args: None)
    assert_wrong(pair("cohere_compass_text"), TEXT, position_ids=grid())


PREFIX = prompts(30, (1,), seed=4)["input_ids"][0, :30]


def warm(model):
    if hasattr(model, "relay"):
        model.relay.warm(PREFIX[:20])
        model.relay.warm(PREFIX)  # goes on from the first


def explain(model):
    if hasattr(model, "relay"):
        model.relay.explain(PREFIX[None])


def two_turns(model, between):
    """A call with images, something else, and a turn on the cache that the call returned."""
    inputs = images.with_images("qwen2_vl")
    first = run(model, inputs, eos_token_id=None)
    between(model)
    second = run(model, then(first, inputs), **{CACHE: cache_of(first)})
    return second, model.model.rope_deltas.tolist()


def does_not_touch_what_images_shifted(between):
    (expected, deltas), (got, ours) = (two_turns(model, between) for model in images.qwen2_vl())
    assert deltas == [[-2]] * 3  # 4 patches stand in a square of 2
    assert ours == deltas
    assert error(expected, got) <= TOLERANCE


def test_a_prefix_does_not_overwrite_rope_deltas():
    does_not_touch_what_images_shifted(warm)


def test_a_prefix_may_not_ask_generate_for_its_positions(monkeypatch):
    """Which is where the model writes what images have shifted."""
    fill = prefix_prefill.prefill_tree

    def asking(call, runs, *args):
        call.facts.view.model._prepare_position_ids_for_generation(runs[0].ids[None], {})
        return fill(call, runs, *args)

    monkeypatch.setattr(prefix_prefill, "prefill_tree", asking)
    (expected, deltas), (got, ours) = (two_turns(model, warm) for model in images.qwen2_vl())
    assert ours != deltas
    assert error(expected, got) > LEAST_WRONG


def test_explain_does_not_overwrite_rope_deltas():
    does_not_touch_what_images_shifted(explain)
