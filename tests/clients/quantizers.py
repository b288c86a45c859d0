"""Quantizers and their modes: what each does to a model, and whether a row then depends on its batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import bitsandbytes
import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
from compressed_tensors.quantization import apply_quantization_config as apply_compressed_tensors
from hqq.core.quantize import BaseQuantizeConfig, HQQLinear
from optimum import quanto
from torch import nn
from torchao import quantization as torchao
from torchao.quantization.granularity import PerGroup, PerTensor
from transformers.integrations.bitnet import AutoBitLinear, BitLinear, WeightQuant, unpack_weights
from transformers.integrations.gemma_quant import QuantizedEmbedding, QuantizedLinear

from relay_hf.testing import VOCABULARY

WIDTH, GROUP = 64, 32
BY_BATCH = "which scales a batch by what is in it"
BY_OUTLIERS = "which looks for outliers in the batch (llm_int8_threshold=0 does not)"

Quantize = Callable[[nn.Module], Any]


class Mode(NamedTuple):
    """A mode of a quantizer.

    Attributes:
        quantize: quantizes a model in place, on the CPU.
        dependent: why a row depends on its batch, in words; empty if it does not.
        unrounded: where activations are rounded, to steps of a scale that is made anew or to half precision: what
            gives a model the same weights, and rounds no activation. A difference in a last bit may become a step, also
            between two calls of stock that pad a row otherwise.
    """

    quantize: Quantize
    dependent: str = ""
    unrounded: Quantize | None = None


def exchange(kind: type[nn.Module], make: Callable[[Any], nn.Module], spare: str = "lm_head") -> Quantize:
    """Puts another layer in the place of each of a kind, but for `spare`, as Transformers does."""

    def quantize(model: nn.Module) -> None:
        for name, module in list(model.named_modules()):
            if type(module) is kind and name != spare:
                model.set_submodule(name, make(module).eval())

    return quantize


def loaded(make: Callable[[Any], nn.Module]) -> Callable[[Any], nn.Module]:
    """bitsandbytes quantizes weights when they go to a device."""

    def filled(module: nn.Module) -> nn.Module:
        made = make(module)
        made.load_state_dict(module.state_dict())
        return made.to("cpu")

    return filled


def eight_bits(threshold: float) -> Quantize:
    options = {"bias": False, "has_fp16_weights": False, "threshold": threshold}
    return exchange(
        nn.Linear,
        loaded(lambda old: bitsandbytes.nn.Linear8bitLt(old.in_features, old.out_features, **options)),
    )


def four_bits(kind: str, twice: bool) -> Mode:
    """A CPU with instructions for bfloat16 computes in bfloat16, whatever it is told."""
    options = {"bias": False, "quant_type": kind, "compress_statistics": twice, "compute_dtype": torch.float32}
    make = loaded(lambda old: bitsandbytes.nn.Linear4bit(old.in_features, old.out_features, **options))

    def unrounded(old: nn.Linear) -> nn.Module:
        weight = make(old).weight
        return plain(old, bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state))

    return Mode(exchange(nn.Linear, make), unrounded=exchange(nn.Linear, unrounded))


def embeddings(kind: type[nn.Module]) -> Quantize:
    return exchange(nn.Embedding, loaded(lambda old: kind(old.num_embeddings, old.embedding_dim)))


def hqq(bits: int, axis: int = 1) -> Quantize:
    config = BaseQuantizeConfig(nbits=bits, group_size=GROUP, axis=axis)
    return exchange(
        nn.Linear, lambda old: HQQLinear(old, config, compute_dtype=torch.float32, device="cpu", del_orig=False)
    )


def by_quanto(weights: Any, activations: Any = None) -> Quantize:
    def quantize(model: nn.Module) -> None:
        quanto.quantize(model, weights=weights, activations=activations)
        if activations is not None:
            torch.manual_seed(0)
            single = isinstance(model, nn.Sequential)
            with quanto.Calibration():
                model(torch.randn(4, 8, WIDTH) if single else torch.randint(3, VOCABULARY, (4, 20)))
        quanto.freeze(model)

    return quantize


def by_torchao(config: Any) -> Quantize:
    return lambda model: torchao.quantize_(model, config)


def compressed_tensors_config(**activations: Any) -> QuantizationConfig:
    """8 bits for each weight's channel, and for the activations what is asked for."""
    weights = QuantizationArgs(num_bits=8, strategy="channel")
    inputs = QuantizationArgs(num_bits=8, **activations) if activations else None
    scheme = QuantizationScheme(targets=["Linear"], weights=weights, input_activations=inputs)
    return QuantizationConfig(config_groups={"all": scheme}, ignore=["lm_head"])


def by_compressed_tensors(**activations: Any) -> Quantize:
    def quantize(model: nn.Module) -> None:
        apply_compressed_tensors(model, compressed_tensors_config(**activations))
        for module in model.modules():
            if hasattr(module, "weight_scale"):
                module.weight_scale.data.copy_(module.weight.abs().amax(1, keepdim=True) / 127)
            if hasattr(module, "input_scale"):
                module.input_scale.data.fill_(0.05)

    return quantize


def of_gemma(bits: int, static: bool) -> Quantize:
    """Transformers' own layers, whose weights come packed from a checkpoint, with fixed scales of activations."""

    def packed(made: nn.Module, name: str) -> None:
        generator = torch.Generator().manual_seed(0)
        weight = getattr(made, name)
        info = torch.iinfo(weight.dtype)
        values = torch.randint(info.min, info.max + 1, weight.shape, generator=generator, dtype=torch.int64)
        weight.data = values.to(weight.dtype)

    def linear(old: nn.Linear) -> nn.Module:
        made = QuantizedLinear(old.in_features, old.out_features, num_bits=bits)
        packed(made, "weight")
        made.weight_scale.data.fill_(0.7 / 2**bits)
        if static:
            made.input_activation_scale.data.fill_(0.05)
        return made

    def embedding(old: nn.Embedding) -> nn.Module:
        made = QuantizedEmbedding(old.num_embeddings, old.embedding_dim, torch.float32, num_bits=bits)
        packed(made, "embedding_quantized")
        made.embedding_scale.data.fill_(0.7 / 2**bits)
        return made

    def quantize(model: nn.Module) -> None:
        exchange(nn.Linear, linear)(model)
        exchange(nn.Embedding, embedding)(model)

    return quantize


def plain(old: nn.Linear, weight: torch.Tensor) -> nn.Linear:
    made = nn.Linear(old.in_features, old.out_features, bias=False)
    made.weight.data = weight
    return made


def packed_ternary() -> Mode:
    """Transformers' own, as BitNet's checkpoints have them."""

    def make(old: nn.Linear) -> Any:
        made = BitLinear(old.in_features, old.out_features, bias=False, dtype=torch.float32)
        generator = torch.Generator().manual_seed(0)
        # Four weights a byte, each of -1, 0 and 1.
        trits = torch.randint(0, 3, (4, *made.weight.shape), generator=generator, dtype=torch.uint8)
        made.weight = sum(trit << 2 * place for place, trit in enumerate(trits))
        made.weight_scale.fill_(8.0)
        return made

    def unrounded(old: nn.Linear) -> nn.Module:
        made = make(old)
        return plain(old, unpack_weights(made.weight, dtype=torch.float32) / made.weight_scale)

    return Mode(exchange(nn.Linear, make), unrounded=exchange(nn.Linear, unrounded))


def ternary() -> Mode:
    """The same from weights that are rounded in each forward."""

    def make(old: nn.Linear) -> nn.Module:
        made = AutoBitLinear(old.in_features, old.out_features, bias=False, online_quant=True)
        made.weight = old.weight
        return made

    return Mode(
        exchange(nn.Linear, make),
        unrounded=exchange(nn.Linear, lambda old: plain(old, WeightQuant.apply(old.weight.data))),
    )


_INT8 = torchao.Int8DynamicActivationInt8WeightConfig
_BY_TOKEN = torchao.Int8DynamicActivationIntxWeightConfig(weight_granularity=PerGroup(GROUP))
_INT8_WEIGHTS = by_torchao(torchao.Int8WeightOnlyConfig())
_INTX_WEIGHTS = by_torchao(torchao.IntxWeightOnlyConfig(granularity=PerGroup(GROUP)))
_WEIGHTS = by_compressed_tensors()  # LLM.int8() has the same ones
_GROUPS = {"strategy": "group", "group_size": GROUP, "dynamic": True}

MODES = {
    "torchao, int8 weights": Mode(_INT8_WEIGHTS),
    "torchao, intx weights": Mode(_INTX_WEIGHTS),
    "torchao, float8 weights": Mode(by_torchao(torchao.Float8WeightOnlyConfig())),
    "torchao, int8 by row": Mode(by_torchao(_INT8()), unrounded=_INT8_WEIGHTS),
    "torchao, intx by token": Mode(by_torchao(_BY_TOKEN), unrounded=_INTX_WEIGHTS),
    "torchao, int8 by tensor": Mode(by_torchao(_INT8(granularity=PerTensor())), BY_BATCH),
    "bitsandbytes, 8 bits": Mode(eight_bits(0.0), unrounded=_WEIGHTS),
    "bitsandbytes, 8 bits but for outliers": Mode(eight_bits(6.0), BY_OUTLIERS),
    "bitsandbytes, nf4": four_bits("nf4", twice=False),
    "bitsandbytes, nf4 twice": four_bits("nf4", twice=True),
    "bitsandbytes, fp4": four_bits("fp4", twice=False),
    "bitsandbytes, embeddings of 8 bits": Mode(embeddings(bitsandbytes.nn.Embedding8bit)),
    "bitsandbytes, embeddings of 4 bits": Mode(embeddings(bitsandbytes.nn.EmbeddingNF4)),
    "hqq, 8 bits": Mode(hqq(8)),
    "hqq, 4 bits": Mode(hqq(4)),
    "hqq, 2 bits by column": Mode(hqq(2, axis=0)),
    "quanto, int8": Mode(by_quanto(quanto.qint8)),
    "quanto, int4": Mode(by_quanto(quanto.qint4)),
    "quanto, float8": Mode(by_quanto(quanto.qfloat8)),
    "quanto, int8 activations": Mode(by_quanto(quanto.qint8, quanto.qint8)),
    "quanto, float8 activations": Mode(by_quanto(quanto.qfloat8, quanto.qfloat8)),
    "compressed-tensors, weights": Mode(_WEIGHTS),
    "compressed-tensors, fixed scale": Mode(by_compressed_tensors(strategy="tensor", dynamic=False)),
    "compressed-tensors, by token": Mode(by_compressed_tensors(strategy="token", dynamic=True), unrounded=_WEIGHTS),
    "compressed-tensors, float8 by token": Mode(
        by_compressed_tensors(type="float", strategy="token", dynamic=True), unrounded=_WEIGHTS
    ),
    "compressed-tensors, by group": Mode(by_compressed_tensors(**_GROUPS), unrounded=_WEIGHTS),
    "compressed-tensors, by tensor": Mode(by_compressed_tensors(strategy="tensor", dynamic=True), BY_BATCH),
    "BitNet, packed": packed_ternary(),
    "BitNet": ternary(),
    "Gemma, 8 bits": Mode(of_gemma(8, static=False)),
    "Gemma, 4 bits": Mode(of_gemma(4, static=False)),
    "Gemma, 2 bits and fixed scales": Mode(of_gemma(2, static=True)),
}
INDEPENDENT = [name for name, mode in MODES.items() if not mode.dependent]
DEPENDENT = [name for name, mode in MODES.items() if mode.dependent]
