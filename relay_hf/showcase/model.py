"""A model to try things on: a Llama of random weights built on the spot, or any model of the Hub or a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from .texts import QUESTIONS, SYSTEM_PROMPT

Size = Literal["tiny", "mini", "small", "base"]

# Hidden size, intermediate size, layers, heads. "base" has the shape of GPT-2; "small" and "mini" show the same sooner;
# "tiny" computes next to nothing.
SIZES: dict[Size, tuple[int, int, int, int]] = {
    "tiny": (64, 128, 2, 4),
    "mini": (384, 1024, 4, 6),
    "small": (512, 1376, 8, 8),
    "base": (768, 2048, 12, 12),
}
_VOCABULARY = 32000
_TURN = ("<|im_start|>", "<|im_end|>")
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Showcase:
    """A model with its tokenizer.

    Attributes:
        model: in eval mode.
        tokenizer: pads on the left, and has a chat template.
        about: one line for the reader: what the model is, and whether its text means anything.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    about: str


def load(
    model: str | Path | None = None,
    *,
    size: Size = "small",
    dtype: torch.dtype = torch.float32,
    device: str | torch.device | None = None,
) -> Showcase:
    """A model and a tokenizer to try things on.

    Args:
        model: a Hub id or a local path; None builds a Llama of random weights, the same at every call, that never ends
            a sequence by itself. Its text is noise: tokens, seconds and bytes are what to look at.
        size: of the model that is built: a key of `SIZES`.
        dtype: of the weights.
        device: where the model goes; None: a CUDA device if there is one.

    Raises:
        ValueError: `size` is unknown.
        OSError: Transformers finds no such model.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if model is None:
        tokenizer = _build_tokenizer()
        built = _build(size, len(tokenizer)).to(device, dtype).eval()
        millions = built.num_parameters() / 1e6
        count = f"{millions:.0f} million" if millions >= 10 else f"{millions:.1f} million"
        about = f"a Llama of {count} random weights, built on the spot: its text is noise"
        return Showcase(built, tokenizer, about)
    name = str(model)
    loaded = AutoModelForCausalLM.from_pretrained(name, dtype=dtype).to(device).eval()
    tokenizer = AutoTokenizer.from_pretrained(name, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return Showcase(loaded, tokenizer, f"{type(loaded).__name__} from {name}")


def _build(size: Size, words: int) -> LlamaForCausalLM:
    """`words`: tokens that the tokenizer has."""
    if size not in SIZES:
        raise ValueError(f"size must be one of {', '.join(map(repr, SIZES))}; got {size!r}.")
    hidden, intermediate, layers, heads = SIZES[size]
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        vocab_size=_VOCABULARY,
        max_position_embeddings=16384,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
        initializer_range=hidden**-0.5,  # with Transformers' 0.02 all prompts get much the same answer
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        built = LlamaForCausalLM(config)
        # What greedy search chooses is a word of the tokenizer's then, and so is most of what is drawn.
        built.lm_head.weight[:words] *= 3
    return built


def _build_tokenizer() -> PreTrainedTokenizerBase:
    """A byte-level BPE, trained on the showcase's texts."""
    bpe = ByteLevelBPETokenizer()
    special = ["<pad>", *_TURN]
    bpe.train_from_iterator(
        [SYSTEM_PROMPT, *QUESTIONS],
        vocab_size=_VOCABULARY,
        min_frequency=1,
        special_tokens=special,
        show_progress=False,
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer,
        pad_token="<pad>",
        additional_special_tokens=list(_TURN),
        padding_side="left",
        chat_template=_CHAT_TEMPLATE,
    )
