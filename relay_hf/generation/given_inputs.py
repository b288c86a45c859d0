"""Reads what `explain` and `warm` are given in the place of tensors: text, lists, and what a tokenizer returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

_IDS, _MASK = "input_ids", "attention_mask"


def read_arguments(
    inputs: Any, second: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """generate()'s arguments of those of `explain`: the first may be text or a dictionary, the second a mask.

    Raises:
        ValueError: the ids are not `[rows, tokens]`; or the texts can't be turned into them.
        TypeError: an argument stands there twice.
    """
    kwargs = dict(kwargs)
    if inputs is None:
        inputs = kwargs.pop("inputs", None)  # generate()'s name of its first argument
    if inputs is None and is_text(kwargs.get(_IDS)):
        inputs = kwargs.pop(_IDS)
    if is_text(inputs):
        inputs = encoded(inputs, kwargs.get("tokenizer"), _IDS)
    if isinstance(inputs, Mapping):
        twice = [name for name in inputs if kwargs.get(name) is not None]
        if twice:
            raise TypeError(
                f"explain() got {twice[0]} twice: in its first argument, and by name. Leave one of them out."
            )
        kwargs |= as_rows(inputs)
        inputs = None
    if isinstance(second, Tensor | list | tuple):
        if kwargs.get(_MASK) is not None:
            raise TypeError(
                "explain() got two masks: in the second place, and as attention_mask. Leave one of them out."
            )
        kwargs[_MASK], second = second, None
    if kwargs.get(_IDS) is not None:
        kwargs[_IDS] = _ids(kwargs[_IDS])
    if kwargs.get(_MASK) is not None:
        kwargs[_MASK] = _tensor(kwargs[_MASK], _MASK)
    inputs = inputs if inputs is None else _ids(inputs)
    if args or second is not None:
        return (inputs, second, *args), kwargs
    return (() if inputs is None else (inputs,)), kwargs


def is_text(given: object) -> bool:
    """Whether it is a text, or a list of texts."""
    texts = given if isinstance(given, list | tuple) else [given]
    return bool(texts) and all(isinstance(text, str) for text in texts)


def encoded(texts: str | list[str], tokenizer: Any, name: str) -> dict[str, Tensor]:
    """What the tokenizer makes of texts, as rows that are padded on the left; `[rows, tokens]` each, on the host.

    The tokenizer pads nothing, because a padding of its own would stay switched on in it. `name` is the argument's.

    Raises:
        TypeError: `tokenizer` is none.
        ValueError: there is no tokenizer, or it has no pad token, which is needed.
    """
    if tokenizer is None:
        raise ValueError(f"{name} is text, so tokenizer is needed; got None. Pass tokenizer=..., or token ids.")
    if not callable(tokenizer):
        raise TypeError(
            f"tokenizer must be a tokenizer of Transformers; got {type(tokenizer).__name__}. Load it with "
            "AutoTokenizer.from_pretrained(...)."
        )
    found = [as_rows(tokenizer(text)) for text in ([texts] if isinstance(texts, str) else texts)]
    for row in found:
        row.setdefault(_MASK, torch.ones_like(row[_IDS]))
    padding = getattr(tokenizer, "pad_token_id", None)
    if padding is None and len({row[_IDS].shape for row in found}) > 1:
        raise ValueError(
            f"tokenizer must have a pad token, because the texts of {name} differ in length; got none. Set "
            "tokenizer.pad_token = tokenizer.eos_token, for example."
        )
    fill = {_IDS: padding or 0}
    return {
        each: pad_sequence([row[each][0] for row in found], True, fill.get(each, 0), padding_side="left")
        for each in found[0]
    }


def as_rows(given: Mapping[str, Any]) -> dict[str, Any]:
    """What a tokenizer returned, as tensors. A single text, which has no dimension of rows there, becomes a row."""
    found = {name: _tensor(value, name) for name, value in given.items()}
    ids = found.get(_IDS)
    if isinstance(ids, Tensor) and ids.dim() == 1:
        found = {name: value[None] if isinstance(value, Tensor) else value for name, value in found.items()}
    return found


def _ids(inputs: Any) -> Tensor:
    ids: Tensor = _tensor(inputs, _IDS)
    # Sound has more dimensions. A list without rows becomes a tensor of floats too.
    if not isinstance(ids, Tensor) or ids.dim() < 2 or (ids.dim() > 2 and not ids.is_floating_point()):
        got = tuple(ids.shape) if isinstance(ids, Tensor) else type(inputs).__name__
        raise ValueError(f"input_ids must be [rows, tokens]; got {got}.")
    return ids


def _tensor(value: Any, name: str) -> Any:
    """A list, or an array, as a tensor; other objects as they are."""
    if value is None or isinstance(value, Tensor | str | bool | dict):
        return value
    try:
        # On the host: within torch.device("meta") their values could not be read.
        return torch.as_tensor(value, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{name} must be a tensor, or rows of numbers that are equally long; got {type(value).__name__} ({error}). "
            "Call the tokenizer with padding=True, padding_side='left' and return_tensors='pt'."
        ) from error
