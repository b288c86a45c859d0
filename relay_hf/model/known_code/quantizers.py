"""The table of quantizers: whether their layers treat every row by itself.

A quantized weight gives each row the same, whatever the other rows are. A quantized activation needs a scale. A scale
for each token, or one that was calibrated before, leaves rows independent. A scale that is made anew from all that goes
through a layer at once does not, and neither does a choice of outliers: then a row depends on its batch.

`tests/clients/test_quantizers.py` tries the layers with other rows beside. Layers that run on GPUs alone were read
instead. A layer that is not in the table is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import CodeType
from typing import Any, NamedTuple

import torch
from torch import nn

from ..upstream.models import QUANTIZED_LAYERS, QUANTIZER
from .origins import file_of, is_in, is_known

# compressed-tensors puts a forward on each module, which does what this attribute of the module says. When it has
# decompressed a model it puts one around that, which moves tensors between devices.
_SCHEME = "quantization_scheme"
_FORWARDS = (
    ("compressed_tensors", "quantization/lifecycle/forward.py", "set_forward_quantized.<locals>."),
    ("compressed_tensors", "offload/module.py", "offload_module.<locals>."),
)
_PLAIN_KINDS = {nn.Parameter, torch.Tensor, type(None)}
_PLAIN_WEIGHTS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_BY_BATCH = "which scales a batch by what is in it"
_BY_ROW = ("PerGroup", "PerRow", "PerToken")


def _outliers(module: Any) -> str | None:
    """LLM.int8() takes columns out of its 8 bits that have an outlier in any row."""
    return "which looks for outliers in the batch (llm_int8_threshold=0 does not)" if module.state.threshold else None


def _by_granularity(weight: Any) -> str | None:
    """torchao's weights say how the activations are quantized: not at all, by a given scale, or by a new one."""
    activations = weight.act_quant_kwargs
    if activations is None or getattr(weight, "act_quant_scale", None) is not None:
        return None
    granularity = activations.granularity
    kind = type(granularity).__name__
    return None if kind in _BY_ROW or (kind == "PerBlock" and granularity.block_size[0] == 1) else _BY_BATCH


def _by_token(weight: Any) -> str | None:
    return None if weight.activation_quantization in (None, "int8_asym_per_token") else _BY_BATCH


def _by_scheme(module: Any) -> str | None:
    scheme = module.__dict__[_SCHEME]
    new = [each for each in (scheme.input_activations, scheme.output_activations) if each and each.dynamic]
    return None if all(each.strategy in ("token", "group") for each in new) else _BY_BATCH


class _Layer(NamedTuple):
    """Layers of a quantizer.

    Attributes:
        package: the package that they are from.
        names: names of their classes, or of the classes of their weights.
        file: the end of the path of their file; empty: any of the package.
        dependent: why a layer, or a weight, makes a row depend on its batch, in words; None if it does not.
    """

    package: str
    names: frozenset[str]
    file: str = ""
    dependent: Callable[[Any], str | None] = lambda found: None


# Their activations are not quantized, or row by row.
_TORCHAOS = frozenset(
    {"Int4PlainInt32Tensor", "Int4PreshuffledTensor", "Int4Tensor", "Int4TilePackedTo4dTensor", "IntxOpaqueTensor"}
)
_BITSANDBYTES = frozenset(
    {
        *("Embedding4bit", "Embedding8bit", "EmbeddingFP4", "EmbeddingNF4"),
        *("Int8Params", "Linear4bit", "LinearFP4", "LinearNF4", "Params4bit"),
    }
)
# GPTQ and AWQ: weights alone are quantized. The names are those of releases 5 and 7.
_GPTQMODELS = frozenset(
    f"{method}{kernel}{end}"
    for method in ("", "Awq")
    for kernel in ("ExllamaV2", "Marlin", "Torch", "TritonV2")
    for end in ("Linear", "QuantLinear")
)

_LAYERS = (
    _Layer("bitsandbytes", frozenset({"Linear8bitLt"}), dependent=_outliers),
    _Layer("bitsandbytes", _BITSANDBYTES),
    _Layer("gptqmodel", _GPTQMODELS),
    _Layer("hqq", frozenset({"HQQLinear"})),
    _Layer("optimum", frozenset({"QLayerNorm", "QLinear", "WeightQBitsTensor", "WeightQBytesTensor"})),
    _Layer("torchao", frozenset({"Float8Tensor", "Int8Tensor"}), dependent=_by_granularity),
    _Layer("torchao", frozenset({"IntxUnpackedToInt8Tensor"}), dependent=_by_token),
    _Layer("torchao", _TORCHAOS),
    _Layer("torch", frozenset({"Linear"}), "ao/nn/quantized/dynamic/modules/linear.py", lambda found: _BY_BATCH),
    _Layer("torch", frozenset({"Linear", "LinearPackedParams"}), "ao/nn/quantized/modules/linear.py"),
    *(_Layer("transformers", frozenset(names), file) for file, names in QUANTIZED_LAYERS.items()),
)
# Where all other layers are a quantizer's too: they are not known.
_OTHERS = (("transformers", "/integrations/"), ("torch", "/ao/"))


def package_of(kind: type) -> str:
    """The package of the quantizer that a class, of a module or of a weight, is of; empty if it is not in the table."""
    layer = _layer_of(kind)
    return "" if layer is None else layer.package


def is_unknown_quantizers(kind: type) -> bool:
    """Whether a class of a known package is a quantizer's, and not in the table."""
    path = (file_of(kind.__module__) or "").replace("\\", "/")
    return any(is_in(path, package) and folder in path for package, folder in _OTHERS) and not package_of(kind)


def puts_forward_on(code: CodeType) -> bool:
    """Whether a forward that was put on a module is a quantizer's, which does what the module's scheme says."""
    found = (name for package, file, name in _FORWARDS if is_in(code.co_filename, package, file))
    return any(map(code.co_qualname.startswith, found))


def is_of_scheme(value: Any) -> bool:
    """Whether an attribute of a module belongs to the scheme by which `dependent_layers` judges it."""
    return is_in(file_of(type(value).__module__) or "", "compressed_tensors")


def dependent_layers(modules: Sequence[nn.Module]) -> Iterator[tuple[nn.Module, str]]:
    """The layers that make a row depend on its batch, each with the reason, in words."""
    table = _checks(modules)
    for module in modules if table else ():
        for found in (module, *module._parameters.values()):
            why = table[type(found)](found) if type(found) in table else None
            if why is not None:
                yield module, why
    for module in modules:
        if _SCHEME in module.__dict__ and (why := _by_scheme(module)) is not None:
            yield module, why


def is_quantized(model: nn.Module, modules: Sequence[nn.Module]) -> bool:
    """Whether any layer computes with quantized numbers.

    A model that was loaded from a quantized file and has plain layers and weights is not quantized any more.
    """
    if _checks(modules) or any(_SCHEME in module.__dict__ for module in modules):
        return True
    if getattr(model, QUANTIZER, None) is None:
        return False
    plain = all(is_known(file_of(kind.__module__) or "") for kind in {*map(type, modules)})
    weights = [weight for module in modules for weight in module._parameters.values() if weight is not None]
    return not plain or not all(weight.dtype in _PLAIN_WEIGHTS for weight in weights)


def weight_kinds(modules: Sequence[nn.Module]) -> set[type]:
    """The classes of all parameters and buffers, but for plain ones."""
    kinds = {type(weight) for module in modules for weight in module._parameters.values()}
    return (kinds | {type(buffer) for module in modules for buffer in module._buffers.values()}) - _PLAIN_KINDS


def _checks(modules: Sequence[nn.Module]) -> dict[type, Callable[[Any], str | None]]:
    """The checks of layers, by the class of a module or of a weight."""
    kinds = {*map(type, modules), *weight_kinds(modules)}
    return {kind: layer.dependent for kind in kinds if (layer := _layer_of(kind)) is not None}


def _layer_of(kind: type) -> _Layer | None:
    path = None
    for layer in _LAYERS:
        if kind.__name__ in layer.names:
            path = path or file_of(kind.__module__) or ""
            if is_in(path, layer.package, layer.file):
                return layer
    return None
