"""Pairs of a stock model and a patched copy, built once for all cases of a worker that share a type and a size."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import relay_hf
from relay_hf.testing import prompts
from tests.support.sizes import WIDTH
from tests.support.tiny_models import tiny_model

from . import sizes
from .precision import DTYPES

_MOST = 256  # pairs held at once
_pairs: OrderedDict[tuple[str, int, str], Pair | str] = OrderedDict()


class Unavailable(Exception):
    """Stock itself does not build the type, or does not generate with it; the message says why."""


@dataclass
class Pair:
    """A stock model, a patched copy of it, and the overrides that its type took."""

    stock: PreTrainedModel
    ours: PreTrainedModel
    overrides: dict[str, Any]

    def __post_init__(self) -> None:
        self._state = [_numbers(module) for module in self._modules()]

    def _modules(self) -> list[nn.Module]:
        return [module for model in (self.stock, self.ours) for module in model.modules() if module._buffers]

    def reset(self) -> None:
        """Undo what forwards leave in modules: rotary frequencies that change with length stay changed for a while."""
        for module, state in zip(self._modules(), self._state, strict=True):
            for name, value in state.items():
                setattr(module, name, value.clone() if isinstance(value, Tensor) else value)

    @property
    def routed(self) -> bool:
        """Whether a router chooses experts."""
        return any("expert" in name for name, _ in self.stock.named_modules())


def pair(model_type: str, size: int, dtype: str) -> Pair:
    """The pair of a type and size.

    Raises:
        Unavailable: the type can't be a case.
    """
    key = (model_type, size, dtype)
    if key not in _pairs:
        try:
            _pairs[key] = build(*key)
        except Unavailable as error:
            _pairs[key] = str(error)
        if len(_pairs) > _MOST:
            _pairs.popitem(last=False)
    _pairs.move_to_end(key)
    found = _pairs[key]
    if isinstance(found, str):
        raise Unavailable(found)
    return found


def forget() -> None:
    """Drop all pairs, so that the next case starts with new ones."""
    _pairs.clear()


def build(model_type: str, size: int, dtype: str) -> Pair:
    """Build a pair with as many of the size's overrides as the type takes."""
    reason = ""
    try:
        asked = sizes.overrides(model_type, size)
    except Exception as error:
        raise Unavailable(_first_line(error)) from error
    for overrides in _fewer(asked):
        try:
            stock = _model(model_type, size, dtype, overrides)
            ours = copy.deepcopy(stock)
        except Exception as error:
            reason = _first_line(error)
            continue
        return Pair(stock, relay_hf.patch_model(ours, policy="always", trust=[""]), overrides)
    raise Unavailable(reason)


def _model(model_type: str, seed: int, dtype: str, overrides: dict[str, Any]) -> PreTrainedModel:
    model = tiny_model(model_type, seed=seed, **overrides).to(DTYPES[dtype])
    _fill_biases(model, seed)
    if dtype == "float64":
        model.set_experts_implementation("eager")  # the grouped product of the other has no float64
    model.generate(**prompts(5, (1, 3)), max_new_tokens=2, min_new_tokens=2)
    return model


def _fill_biases(model: PreTrainedModel, seed: int) -> None:
    """Biases start at zero, where they would hide what leaves them out, or lets padding through them."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith("bias") and not parameter.any():
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * WIDTH)


def _numbers(module: nn.Module) -> dict[str, Any]:
    """The buffers of a module and its attributes that are numbers."""
    plain = {name: value for name, value in vars(module).items() if type(value) in (int, float)}
    return {**plain, **{name: value.clone() for name, value in module._buffers.items() if value is not None}}


def _fewer(overrides: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All overrides, then all but one, then none."""
    yield overrides
    for name in overrides:
        yield {other: value for other, value in overrides.items() if other != name}
    if overrides:
        yield {}


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
