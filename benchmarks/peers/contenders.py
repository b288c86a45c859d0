"""Who is compared: each contender's engine, its environment, its settings, and what it does with the prefix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Mode = Literal["cold", "kept", "own"]
MODES: dict[Mode, str] = {
    "cold": "nothing kept: the time has the prefix in it",
    "kept": "prefix kept: its KV is there before the clock starts",
    "own": "no prefix: the own tokens alone",
}
_ALL: tuple[Mode, ...] = ("cold", "kept", "own")


@dataclass(frozen=True)
class Contender:
    """A row of the table.

    Attributes:
        label: its name in tables.
        numbers: the group of contenders that it is compared with: the numbers that its weights are.
        engine: the module of its engine.
        environment: the folder of its virtual environment.
        options: of the engine.
        prefix: what it does with the prefix, in words.
        settings: what was set, in words.
        modes: what is timed.
        must_agree: whether its tokens must be stock's; of the others they are counted.
    """

    label: str
    numbers: Literal["float32", "bfloat16", "quantized"]
    engine: str
    environment: str
    options: Mapping[str, Any]
    prefix: str
    settings: str
    modes: tuple[Mode, ...] = _ALL
    must_agree: bool = False


_BY_STOCK = "computed, stored and read for every row"
_BY_RELAY = "computed and stored once, at every level; a step reads it once for all rows"
_BY_LLAMA = (
    "computed and stored once, at every level, in a unified cache (`seq_cp`); each row attends over all cells, with "
    "those of other rows masked"
)
_BY_STATIC = "static prompt: the first level computed once, its KV copied to every row"
_BY_BLOCKS = (
    "prefix caching: computed and stored once, at every level, in blocks of 32 tokens, as prompts ahead of the rows; a "
    "step reads them for every row"
)


def _transformers(numbers: Any, patched: bool, modes: tuple[Mode, ...], **more: Any) -> Contender:
    dtype = "float32" if numbers == "float32" else "bfloat16"
    label, settings = f"relay_hf {numbers}" if patched else f"stock {numbers}", f"weights and KV {dtype}"
    if "quantize" in more:
        label, settings = "relay_hf int8", "torchao weight-only int8, activations and KV bfloat16"
    return Contender(
        label,
        numbers,
        "transformers",
        ".venv-clients" if "quantize" in more else ".venv",
        {"dtype": dtype, "patched": patched, **more},
        _BY_RELAY if patched else _BY_STOCK,
        settings,
        modes,
        must_agree=numbers == "float32",
    )


def _llama(numbers: Any, weights: str, kv: str, flash: bool = True) -> Contender:
    attention = "flash attention" if flash else "no flash attention"
    return Contender(
        f"llama.cpp {weights.replace('bfloat', 'BF').replace('float', 'F')}, {attention}",
        numbers,
        "llamacpp",
        ".venv-peers-llamacpp",
        {"weights": weights, "kv": kv, "flash": flash, "ubatch": 512},
        _BY_LLAMA,
        f"weights {weights}, KV {kv}, {attention}, batches of 512 tokens",
    )


def _ctranslate2(numbers: Any, compute: str, settings: str) -> Contender:
    label, environment = f"CTranslate2 {compute.split('_')[0]}", ".venv-peers-ctranslate2"
    return Contender(label, numbers, "ctranslate2", environment, {"compute": compute}, _BY_STATIC, settings)


def _openvino(numbers: Any, weights: str, precision: str, kv: str) -> Contender:
    kind = numbers if weights == "float32" else weights
    return Contender(
        f"OpenVINO GenAI {kind}",
        numbers,
        "openvino",
        ".venv-peers-openvino",
        {"weights": weights, "precision": precision, "kv": kv, "batch": 2048},
        _BY_BLOCKS,
        f"weights {kind}, computes in {precision}, KV {kv}, batches of 2048 tokens",
    )


CONTENDERS = {
    "stock": _transformers("float32", False, ("cold", "own")),
    "relay": _transformers("float32", True, ("cold", "kept")),
    "llamacpp": _llama("float32", "float32", "float32"),
    "llamacpp-no-flash": _llama("float32", "float32", "float32", flash=False),
    "ctranslate2": _ctranslate2("float32", "float32", "weights and KV float32"),
    "openvino": _openvino("float32", "float32", "f32", "f32"),
    "stock-bf16": _transformers("bfloat16", False, ("cold", "own")),
    "relay-bf16": _transformers("bfloat16", True, ("cold", "kept")),
    "llamacpp-bf16": _llama("bfloat16", "bfloat16", "float16"),
    "openvino-bf16": _openvino("bfloat16", "float32", "bf16", "bf16"),
    "llamacpp-q8": _llama("quantized", "Q8_0", "float16"),
    "llamacpp-q4": _llama("quantized", "Q4_K_M", "float16"),
    "openvino-q8": _openvino("quantized", "Q8_0", "bf16", "f16"),
    "ctranslate2-int8": _ctranslate2("quantized", "int8_float32", "weights and activations int8, the rest float32"),
    # Nothing is kept of a quantized model, because its weights could change unseen.
    "relay-int8": _transformers("quantized", True, ("cold",), quantize=["Int8WeightOnlyConfig", {"version": 2}]),
}

# Who is not there, and why; those whose environment is missing say so when they are started.
ABSENT = {
    "relay_hf int4": "torchao 0.18 has 4-bit weights for CPUs in its prototypes alone (Int4OpaqueTensor); relay_hf "
    "does not know them, and leaves the call to stock; the other 4-bit weights need a GPU",
    "CTranslate2 bfloat16": "it computes on this kind of processor in float32 and with int8 weights only",
}
