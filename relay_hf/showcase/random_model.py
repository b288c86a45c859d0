"""A Llama of random weights and a tokenizer, built on the spot: for tests, and for machines without a model."""

from __future__ import annotations

from typing import Literal

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

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


def build(size: Size, words: int) -> LlamaForCausalLM:
    """The model, the same at every call, that never ends a sequence by itself.

    Args:
        size: a key of `SIZES`.
        words: tokens that the tokenizer has.

    Raises:
        ValueError: `size` is unknown.
    """
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


def build_tokenizer() -> PreTrainedTokenizerBase:
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
