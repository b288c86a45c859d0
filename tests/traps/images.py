"""Tiny models that see images, and prompts with placeholders for one: equal ids in all rows, an image for each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText

from relay_hf.testing import PAD, VOCABULARY, prompts

from .compare import Models, beside_a_patched_copy, pair

PLACEHOLDER = 90
_PATCHES = 4  # placeholders of an image
_WIDTH = 0.2  # as wide as the other tiny models' weights: the image is seen

_TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]},
    "initializer_range": _WIDTH,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_VISION: dict[str, Any] = {
    "depth": 1,
    "embed_dim": 16,
    "hidden_size": 32,
    "num_heads": 2,
    "mlp_ratio": 2,
    "patch_size": 4,
    "temporal_patch_size": 1,
}


def qwen2_vl() -> Models:
    """Positions are 3-D, for text alone too, and what images shift them by is held on the model as `rope_deltas`."""
    tokens = {"image_token_id": PLACEHOLDER, "video_token_id": 91, "vision_start_token_id": 92}
    config = AutoConfig.for_model(
        "qwen2_vl", text_config=_TEXT, vision_config=_VISION, initializer_range=_WIDTH, **tokens
    )
    torch.manual_seed(0)
    return beside_a_patched_copy(AutoModelForImageTextToText.from_config(config).eval())


def exaone4_5() -> Models:
    """Takes positions, and prepares its inputs without them: it counts columns."""
    kinds = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 12, "model_type": "exaone4"}
    text = {**_TEXT, **kinds, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "out_hidden_size": 32, "num_heads": 2}
    vision = {**vision, "num_key_value_heads": 2, "patch_size": 4}
    config = AutoConfig.for_model("exaone4_5", text_config=text, vision_config=vision)
    torch.manual_seed(0)
    return beside_a_patched_copy(AutoModelForImageTextToText.from_config(config).eval())


def gemma3() -> Models:
    """Attention is bidirectional over an image, as token types say."""
    tokens = {"image_token_id": PLACEHOLDER, "boi_token_id": 91, "eoi_token_id": 92, "mm_tokens_per_image": _PATCHES}
    return pair("gemma3", vision_config={"image_size": 16, "patch_size": 4}, **tokens)


def git() -> Models:
    """The image stands before the text, without placeholders."""
    return pair("git", vision_config={"image_size": 16, "patch_size": 8})


def got_ocr2() -> Models:
    """An image is one placeholder."""
    return pair("got_ocr2", image_token_id=PLACEHOLDER)


def text(placeholders: int = _PATCHES) -> dict[str, Tensor]:
    """Three rows that share 20 tokens, among them placeholders."""
    inputs = prompts(20, (5, 5, 5))
    inputs["input_ids"][:, 6 : 6 + placeholders] = PLACEHOLDER
    return inputs


def with_images(model_type: str) -> dict[str, Tensor]:
    """The text, and an image for each row."""
    inputs = text({"got_ocr2": 1, "git": 0}.get(model_type, _PATCHES))
    generator = torch.Generator().manual_seed(0)
    shapes = {"gemma3": (3, 3, 16, 16), "git": (3, 3, 16, 16), "got_ocr2": (3, 3, 64, 64), "qwen2_vl": (48, 48)}
    images = {"pixel_values": torch.randn(shapes[model_type], generator=generator)}
    of_an_image = (inputs["input_ids"] == PLACEHOLDER).int()
    if model_type == "gemma3":
        images["token_type_ids"] = of_an_image
    if model_type == "qwen2_vl":
        images.update(image_grid_thw=torch.tensor([[1, 4, 4]] * 3), mm_token_type_ids=of_an_image)
    return {**inputs, **images}
