"""Classifier-free guidance: a second, plain forward of the same model beside each relayed one."""

import pytest

from relay_hf.testing import prompts

from .compare import PREFIX, assert_relayed, assert_untouched, generate

# Prompts of their own, and prompts that start with the very prefix that is kept.
NEGATIVES = {"other": prompts(6, (1, 2, 3, 4), seed=3), "same start": prompts(PREFIX, (1, 2, 3, 4))}


@pytest.mark.parametrize("strategy", [{}, {"num_beams": 2}], ids=["greedy", "beams"])
def test_without_a_negative_prompt(pair, strategy):
    options = {"guidance_scale": 1.5, **strategy}
    assert_relayed(pair, lambda model: generate(model, **options), rows=4 * strategy.get("num_beams", 1))


@pytest.mark.parametrize(("negative", "masked"), [("other", False), ("same start", True)])
def test_with_a_negative_prompt(pair, negative, masked):
    ids, mask = NEGATIVES[negative].values()
    options = {"negative_prompt_ids": ids, "negative_prompt_attention_mask": mask if masked else None}
    assert_relayed(pair, lambda model: generate(model, guidance_scale=1.5, do_sample=True, **options))


def test_without_a_cache(pair):
    assert_untouched(pair, lambda model: generate(model, guidance_scale=1.5, use_cache=False), "use_cache=False")
