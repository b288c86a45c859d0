"""What makes kept prefixes one model's own, in another process too: its configuration, weights, adapters and code."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from transformers import __version__ as transformers_version

from .call import open_call
from .eligibility import rope_limit
from .keeping import context_of
from .prefix import adapter_state, digest_of_all

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Of a configuration, what no forward reads: where it came from, and how text is cut and labelled.
_IRRELEVANT = frozenset(
    {
        "architectures",
        "bos_token_id",
        "dtype",  # the model's own is compared
        "eos_token_id",
        "id2label",
        "label2id",
        "pad_token_id",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)
_WEIGHTS = "weights"
_WORDS = {
    "model_type": "another type of model",
    "config": "another configuration",
    "dtype": "another dtype",
    "autocast": "another autocast dtype",
    "rope_limit": "another RoPE",
    "transformers": "another version of Transformers, whose code may compute otherwise",
    _WEIGHTS: "other weights",
}


def identity_of(model: PreTrainedModel, weights: bool = True) -> dict[str, Any]:
    """All of it, as JSON has it; inside an open call.

    `weights`: with the digest of all weights and adapters, for which every byte of them is read.
    """
    _, dtype, autocast = context_of(model)
    known = {
        "model_type": model.config.model_type,
        "config": _relevant(json.loads(model.config.to_json_string(use_diff=False))),
        "dtype": str(dtype),
        "autocast": None if autocast is None else str(autocast),
        "rope_limit": min(filter(None, map(rope_limit, open_call().configs)), default=None),
        "transformers": transformers_version,
        "torch": torch.__version__,
    }
    return known | {_WEIGHTS: _weights_digest(model)} if weights else known


def difference(stored: dict[str, Any], model: PreTrainedModel) -> str | None:
    """How the model differs from the one that an identity is of, in words; None if it doesn't. Inside an open call."""
    known = identity_of(model, weights=False)
    for name, words in _WORDS.items():  # the weights last: they take time
        here = _weights_digest(model) if name == _WEIGHTS else known[name]
        there = stored.get(name)
        if here != there:
            return f"{words}: {_contrast(there, here)}"
    return None


def _weights_digest(model: PreTrainedModel) -> str:
    """Of parameters, buffers that are saved with a model, and the state of peft's layers.

    Buffers that are not saved are computed from the configuration, on some devices a bit otherwise than on others.
    """
    tensors = list(model.named_parameters())
    for path, module in model.named_modules():
        for name, buffer in module.named_buffers(path, recurse=False):
            if name.rpartition(".")[2] not in module._non_persistent_buffers_set:
                tensors.append((name, buffer))
    return digest_of_all(tensors, adapter_state(open_call().modules))


def _relevant(config: Any) -> Any:
    if not isinstance(config, dict):
        return config
    return {
        name: _relevant(value) for name, value in config.items() if name not in _IRRELEVANT and not name.startswith("_")
    }


def _contrast(there: Any, here: Any, at: str = "") -> str:
    """Where two values differ first: `rope_theta is 10000.0 there and 500000.0 here`."""
    if isinstance(there, dict) and isinstance(here, dict):
        for name in sorted({*there, *here}):
            if there.get(name) != here.get(name):
                return _contrast(there.get(name), here.get(name), f"{at}.{name}".lstrip("."))
    return f"{at or 'it'} is {_short(there)} in the file and {_short(here)} here"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
