"""Models whose attention takes another way for a single query, as flash-decoding code does."""

from __future__ import annotations

import copy
from typing import Any

from transformers import Lfm2ForCausalLM, LlamaForCausalLM
from transformers.models.lfm2.modeling_lfm2 import Lfm2Attention
from transformers.models.llama.modeling_llama import LlamaAttention

from tests.support.tiny_models import tiny_model


class FastAttention:
    """Attention of which a single query runs an implementation that no configuration of the model names."""

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__(config, layer_idx)  # type: ignore[call-arg]
        self.named, self.plain = config, copy.deepcopy(config)

    def forward(self, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        """Attention."""
        if hidden_states.shape[1] > 1:
            return super().forward(hidden_states, *args, **kwargs)  # type: ignore[misc]
        return self.decode(hidden_states, *args, **kwargs)

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        """Attention of a single query."""
        self.config = self.plain
        try:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        finally:
            self.config = self.named


class FastLlamaAttention(FastAttention, LlamaAttention):
    """Llama's."""


class FastLfm2Attention(FastAttention, Lfm2Attention):
    """LFM2's, which stands between convolutions."""


class FastModel:
    """A model that has such attention from the start."""

    attention: Any

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        for index, layer in enumerate(self.model.layers):  # type: ignore[attr-defined]
            if hasattr(layer, "self_attn"):
                layer.self_attn = self.attention(config, index)

    @classmethod
    def tiny(cls, **overrides: Any) -> Any:
        """A tiny one, with the weights of the plain type's."""
        like = tiny_model(cls.config_class.model_type, **overrides)  # type: ignore[attr-defined]
        model = cls(copy.deepcopy(like.config)).eval()  # type: ignore[attr-defined]
        model.load_state_dict(like.state_dict())
        return model


class FastLlama(FastModel, LlamaForCausalLM):
    """Llama."""

    attention = FastLlamaAttention


class FastLfm2(FastModel, Lfm2ForCausalLM):
    """LFM2."""

    attention = FastLfm2Attention
