"""The identity of a model in a file of prefixes: its configuration, weights, adapters and modules, to be compared.

It does not show code that was replaced in a class by monkey-patching, nor another revision of a model's own code.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import torch

from ..errors import RelayError, shown
from .buffers import alike, computed_buffers
from .device import autocast_of
from .digests import digest_of_all
from .fingerprint.contents import PLAIN
from .fingerprint.module_state import adapter_state
from .modules import class_of
from .upstream.models import PASSING_ATTRIBUTES, rope_limit
from .upstream.version import INSTALLED
from .view import ModelView

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .fingerprint.fingerprint import ModelFingerprint

# Fields of a configuration that no forward computes with: its origin, which outputs are returned, how text is cut and
# labelled.
_IRRELEVANT = frozenset(
    {
        "architectures",
        "bos_token_id",
        "dtype",  # the model's own is compared
        "eos_token_id",
        "id2label",
        "label2id",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "return_dict",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)
_PASSING = PASSING_ATTRIBUTES | {"training"}  # prefixes are refused in training mode anyway
_WEIGHTS = "weights"
_WORDS = {
    "model_type": "another type of model",
    "config": "another configuration",
    "dtype": "another dtype",
    "autocast": "another autocast dtype",
    "rope_limit": "another RoPE",
    "modules": "other modules, or other settings of them",
    "buffers": "other buffers",
    "transformers": "another version of Transformers, whose code may compute otherwise",
    _WEIGHTS: "other weights",
}


def identity_of(view: ModelView, seen: ModelFingerprint | None = None) -> dict[str, Any]:
    """The identity, as JSON.

    `seen`: the fingerprint of the model whose prefixes will be written. With it, the identity has the digest of all
    weights and adapters, for which every byte is read, and leaves out buffers that the model's own forward rewrites.

    Raises:
        RelayError: the configuration can't be written as JSON.
    """
    model = view.model
    autocast = autocast_of(model)
    try:
        config = _relevant(json.loads(model.config.to_json_string(use_diff=False)))
    except (TypeError, ValueError) as error:
        raise RelayError(f"the model's configuration can't be written as JSON ({error}), so nothing is saved") from None
    known = {
        "model_type": model.config.model_type,
        "config": config,
        "dtype": str(model.dtype),
        "autocast": None if autocast is None else str(autocast),
        "rope_limit": min(filter(None, map(rope_limit, view.configs)), default=None),
        "modules": _modules_digest(model),
        "buffers": computed_buffers(model, frozenset() if seen is None else seen.ignore),
        "transformers": INSTALLED,
        "torch": torch.__version__,
    }
    return known if seen is None else known | {_WEIGHTS: _weights_digest(view)}


def difference(stored: dict[str, Any], view: ModelView) -> str | None:
    """How the model differs from that of a stored identity, in words; None if it does not differ."""
    known = identity_of(view)
    for name, words in _WORDS.items():  # the weights last: they take time
        here = _weights_digest(view) if name == _WEIGHTS else known[name]
        there = stored.get(name)
        if not (alike(there, here) if name == "buffers" else here == there):
            return f"{words}: {_contrast(there, here)}"
    return None


def _modules_digest(model: PreTrainedModel) -> str:
    """The digest of each module's class and plain settings, which a forward may read without the configuration."""
    lines = []
    for path, module in model.named_modules():
        kind = class_of(module)
        settings = sorted(
            (name, value)
            for name, value in vars(module).items()
            if type(value) in PLAIN and not name.startswith("_") and name not in _PASSING
        )
        lines.append(f"{path} {kind.__module__.rpartition('.')[2]}.{kind.__qualname__} {settings}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _weights_digest(view: ModelView) -> str:
    """The digest of parameters, of buffers that are saved with a model, and of the state of peft's layers."""
    tensors = list(view.model.named_parameters())
    for path, module in view.model.named_modules():
        for name, buffer in module.named_buffers(path, recurse=False):
            if name.rpartition(".")[2] not in module._non_persistent_buffers_set:
                tensors.append((name, buffer))
    return digest_of_all(tensors, adapter_state(view.modules))


def _relevant(config: Any) -> Any:
    if not isinstance(config, dict):
        return config
    return {
        name: _relevant(value) for name, value in config.items() if name not in _IRRELEVANT and not name.startswith("_")
    }


def _contrast(there: Any, here: Any, at: str = "") -> str:
    """The first difference of two values, such as `rope_theta is 10000.0 there and 500000.0 here`."""
    if isinstance(there, dict) and isinstance(here, dict):
        for name in sorted({*there, *here}):
            if there.get(name) != here.get(name):
                return _contrast(there.get(name), here.get(name), f"{at}.{name}".lstrip("."))
    return f"{at or 'it'} is {shown(there)} in the file and {shown(here)} here"
