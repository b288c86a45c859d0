"""Finds the model that generates in what `patch_model` is given, or says what to give instead."""

from __future__ import annotations

import os

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from .upstream.models import is_generating


def generating_model(given: object) -> PreTrainedModel:
    """The model that generates: `given`, or the model inside of peft's and torch.compile's wrappers.

    These wrappers generate by the model inside and have its attributes, so they are patched with it.

    Raises:
        TypeError: there is none, or `given` is a wrapper that does not have the attributes of the model inside.
    """
    inner = _unwrapped(given)
    if is_generating(inner):
        return inner
    got = f"the class {given.__name__}" if isinstance(given, type) else type(given).__name__
    raise TypeError(
        f"model must be a Transformers model that generates text (a GenerationMixin); got {got}. {_advice(inner)}"
    )


def _unwrapped(given: object) -> object:
    """What is inside of peft's and torch.compile's wrappers."""
    while isinstance(given, nn.Module):
        if "_orig_mod" in given._modules:
            given = given._modules["_orig_mod"]
        elif (unwrap := getattr(given, "get_base_model", None)) is not None:
            given = unwrap()
        else:
            break
    return given


def _advice(given: object) -> str:
    """What to do about an object that does not generate as a model of Transformers."""
    if isinstance(given, type) and hasattr(given, "from_pretrained"):
        return f"Pass a model: {given.__name__}.from_pretrained(...)."
    if isinstance(given, (str, os.PathLike)):
        return f"Load it first: AutoModelForCausalLM.from_pretrained({os.fspath(given)!r})."
    if isinstance(given, (PreTrainedTokenizerBase, ProcessorMixin)):
        return "Pass the model that it belongs to."
    # DistributedDataParallel, a value head of TRL's, a pipeline ...: `model.relay` would not be on such an object.
    parts = given.named_modules() if isinstance(given, nn.Module) else getattr(given, "__dict__", {}).items()
    for name, part in parts:
        if name and is_generating(inner := _unwrapped(part)):
            how = f"its .{name}" if "." not in name else f"its .get_submodule({name!r})"
            return f"It holds a {type(inner).__name__}: pass {how}."
    if isinstance(given, PreTrainedModel):
        return "It has no head that generates: load it with AutoModelForCausalLM, or AutoModelForImageTextToText."
    if isinstance(given, nn.Module):
        return "A model of your own can call relay_hf.ops.relay_attention."
    return "Load one with AutoModelForCausalLM.from_pretrained(...)."
