"""Equal placeholders are not equal images; and positions of three dimensions, with what a model holds of them."""

import pytest
import torch

from relay_hf.generation import eligibility, prefix_prefill
from relay_hf.testing import prompts
from tests.models.trial import TOLERANCE
from tests.support.generating import CACHE, cache_of

from . import images
from .compare import LEAST_WRONG, RECENT, all_inputs_known, assert_untouched, assert_wrong, error, pair, run, then

KINDS = ["gemma3", "git", "got_ocr2", "qwen2_vl"]
NOT_RELAYED = "the call has an input that is not relayed"
THREE = "position_ids have 3 dimensions"


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


def test_positions_of_three_dimensions_are_untouched():
    """Qwen's kin make them for text, too."""
    models = images.qwen2_vl()
    assert_untouched(models, prompts(20, (5, 5, 5)), THREE)
    assert_untouched(models, prompts(20, (3, 7, 1, 5)), THREE)


def grid():
    """Positions of the caller: height and width of what stands in the prefix go their own ways."""
    positions = torch.arange(25).repeat(3, 3, 1)
    positions[1:, :, 6:10] = torch.tensor([6, 6, 7, 7])
    positions[1, :, 12:] -= 3
    return positions


def test_positions_of_three_dimensions_that_are_given_to_a_text_model():
    assert_untouched(pair("cohere_compass_text"), prompts(20, (5, 5, 5)), THREE, position_ids=grid())


def test_positions_of_three_dimensions_need_the_guard(monkeypatch):
    monkeypatch.setattr(eligibility, "position_refusal", lambda *args: None)
    assert_wrong(pair("cohere_compass_text"), prompts(20, (5, 5, 5)), position_ids=grid())


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
