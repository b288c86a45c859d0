"""The table of model types with facts that a forward does not show while it runs. A new architecture costs a row here.

Most types need no row: they attend through Transformers' attention interface, where the relay sees every layer's
queries, keys and masks, and notices if one is missing. A row says what the relay can't see: that attention code of a
model's own is causal, that a recurrent layer can go on from a given state, that positions don't depend on padding. The
tests of all model types (`tests/models`) compare every row with stock generate().
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .upstream.version import MINOR

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Architecture:
    """One model type.

    Attributes:
        own_attention: the type has attention code of its own, or masks that the operator does not know. Its code gets
            split tensors, which stand for keys and values of whole rows (`attention/split_tensor/`).
        recurrent: how a recurrent layer goes on from a state: "split" with any number of tokens, "steps" with one at a
            time (its code for several tokens starts from zero), None if neither is known.
        positions: where a token's position comes from. "given": from `position_ids`; a type whose forward has no such
            argument counts columns (BART and its relatives). "columns": the type counts columns, although its forward
            has that argument. "relative": from distances, or from a count of the attention mask; padding shifts
            neither.
        steps_alike: a decode step leaves the same recurrent state as a prefill of its token. If it does not, the answer
            is not kept for a next turn, because stock prefills the answer there.
        decoder: attention is causal only with `is_decoder=True` in the configuration (BERT and its relatives).
        since: the first minor version of Transformers 5 whose own code gives the same with a cache as without.
        untouched: why a type is never served.
    """

    own_attention: bool = False
    recurrent: Literal["split", "steps"] | None = None
    positions: Literal["given", "columns", "relative"] = "given"
    steps_alike: bool = True
    decoder: bool = False
    since: int = 0
    untouched: str | None = None


_OWN_ATTENTION = Architecture(own_attention=True)
_SPLIT = Architecture(recurrent="split", positions="relative")
_UNLIKE = Architecture(recurrent="split", positions="relative", steps_alike=False)
_STEPS = Architecture(recurrent="steps", positions="relative")

ARCHITECTURES: dict[str, Architecture] = {
    # Attention of their own.
    "bloom": Architecture(own_attention=True, positions="relative"),  # ALiBi, counted from the mask
    "codegen": _OWN_ATTENTION,
    "diffllama": _OWN_ATTENTION,  # two attentions a layer, over halves of the values
    "falcon": Architecture(own_attention=True, positions="relative"),
    "gemma4_unified_text": _OWN_ATTENTION,  # a mask that is bidirectional over images, of which a text has none
    "git": Architecture(own_attention=True, positions="columns"),
    "gpt_neo": _OWN_ATTENTION,
    "gpt_neox_japanese": _OWN_ATTENTION,
    "gptj": _OWN_ATTENTION,
    "hrm_text": _OWN_ATTENTION,  # layers that run several times a forward
    "llama4_text": Architecture(own_attention=True, positions="columns"),  # in chunks, a temperature by column
    "megatron-bert": Architecture(own_attention=True, decoder=True, since=23),
    "mpt": Architecture(own_attention=True, positions="relative"),
    "mvp": _OWN_ATTENTION,
    "rembert": Architecture(own_attention=True, decoder=True, since=23),
    "roformer": Architecture(own_attention=True, decoder=True, since=23),
    "trocr": _OWN_ATTENTION,
    "xglm": _OWN_ATTENTION,
    # Recurrent layers.
    "bailing_hybrid": _SPLIT,
    "bamba": _SPLIT,
    "falcon_h1": _SPLIT,
    "falcon_mamba": _STEPS,
    "granitemoehybrid": _SPLIT,
    "inkling2_loop_text": Architecture(own_attention=True, recurrent="split"),
    "inkling2_text": Architecture(own_attention=True, recurrent="split"),  # a position bias from the queries
    "inkling_text": Architecture(own_attention=True, recurrent="split"),
    "jamba": _STEPS,
    "kimi_linear": _SPLIT,
    "lara_mini": _SPLIT,
    "lfm2": _SPLIT,
    "lfm2_moe": _SPLIT,
    "lfm3": _SPLIT,
    "mamba": _STEPS,
    "mamba2": _SPLIT,
    "nemotron_h": _UNLIKE,
    "olmo_hybrid": _SPLIT,
    "qwen3_5_moe_text": _SPLIT,
    "qwen3_5_text": _SPLIT,
    "qwen3_next": _SPLIT,
    "recurrent_gemma": Architecture(untouched="the model keeps its recurrent state outside of the cache"),
    "zamba": _STEPS,
    "zamba2": _UNLIKE,
    "zaya": _SPLIT,
}
_DEFAULT = Architecture()


def architecture_of(config: PreTrainedConfig) -> Architecture:
    """The row of a decoder's configuration; an empty row if there is none for this Transformers."""
    found = ARCHITECTURES.get(config.model_type, _DEFAULT)
    return found if found.since <= MINOR else _DEFAULT
