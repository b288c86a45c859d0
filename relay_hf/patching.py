"""`patch_model`, `unpatch_model` and `patched`: they hook relay_hf into a model, and undo it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import nn
from transformers import PreTrainedModel

from .attention import interface
from .config import RelayConfig
from .errors import RelayError
from .generation.hooks import ModelHooks
from .model.generating import generating_model
from .model.upstream import drift
from .model.upstream.models import ENCODE
from .model.upstream.names import PREFILL
from .relay import Relay

Model = TypeVar("Model", bound=nn.Module)

# Instance attributes that shadow the class's methods while a model is patched.
_SHADOWED = {"generate": "generate", ENCODE: "encode", PREFILL: "prefill", "train": "train"}
_lock = threading.Lock()  # two threads may patch one model


def patch_model(model: Model, config: RelayConfig | None = None, **options: Any) -> Model:
    """Make `model.generate()` compute, store and read a batch's shared prefix once.

    Args:
        model: a Transformers model that generates text, or what peft or torch.compile made of one.
        config: options as one object. Default: `RelayConfig()`, or the options in force if the model is patched.
        **options: fields of RelayConfig, which override `config`.

    Returns:
        The same object. `model.relay` is the handle; `unpatch_model(model)` undoes it. If no call of the model will be
        relayed, whatever the call, and its configuration shows it (encoder-decoder models, for example), the logger
        `relay_hf` warns, once. Of some types only a call shows it; then that call's warning says so.

    Raises:
        TypeError: `model` does not generate (the error says what to pass), or an option is unknown or of the wrong
            type.
        ValueError: an option has a wrong value.
        RelayError: this Transformers is not what relay_hf hooks into, and the error names what has changed; or `model`
            is a shallow copy of a patched model.

    Example:
        >>> from relay_hf.testing import prompts, tiny_model
        >>> model = patch_model(tiny_model("llama"), policy="always")
        >>> tokens = model.generate(**prompts(prefix=40, own=[3, 5, 4]), max_new_tokens=2)
        >>> model.relay.last.prefix_length
        40
    """
    target = generating_model(model)
    with _lock:
        hooks = _hooks_of(target)
        settings = RelayConfig.build(config or (hooks.config if hooks else None), options)
        if hooks is not None:
            hooks.configure(settings)
            return model
        drift.check(type(target))
        interface.register()
        hooks = ModelHooks(target, settings, {name: target.__dict__.get(name) for name in _SHADOWED})
        _put_on(target, hooks)
        hooks.announce()
    return model


def unpatch_model(model: Model) -> Model:
    """Give back the model as it was before `patch_model`, attribute for attribute; kept prefixes are dropped.

    A model that is not patched is returned as it is.

    Raises:
        TypeError: `model` is no Transformers model that generates text.
        RelayError: it generates now, in this thread or another one, and stays patched; or it is a shallow copy of a
            patched model.
    """
    target = generating_model(model)
    with _lock:
        hooks = _hooks_of(target)
        if hooks is None:
            return model
        hooks.retire()
        hooks.clear()
        _take_off(target, hooks)
    return model


def _put_on(target: PreTrainedModel, hooks: ModelHooks) -> None:
    """Patch as a whole or not at all. The handle comes first, so that a patch interrupted twice can be undone."""
    try:
        target.__dict__["relay"] = Relay(hooks)
        for name, method in _SHADOWED.items():
            target.__dict__[name] = getattr(hooks, method)
        hooks.handles.append(target.register_forward_pre_hook(hooks.before_forward, with_kwargs=True))
        hooks.handles.append(target.register_forward_hook(hooks.after_forward, always_call=True))
    except BaseException:
        _take_off(target, hooks)
        raise


def _take_off(target: PreTrainedModel, hooks: ModelHooks) -> None:
    """Take off all parts of a patch that are there; the handle last."""
    for name, before in hooks.shadowed.items():
        # A method that somebody has put over ours since then stays. If it calls ours, that calls stock unrelayed.
        if target.__dict__.get(name) == getattr(hooks, _SHADOWED[name]):
            if before is None:
                del target.__dict__[name]
            else:
                target.__dict__[name] = before
    for handle in hooks.handles:
        handle.remove()
    target.__dict__.pop("relay", None)


@contextmanager
def patched(model: Model, config: RelayConfig | None = None, **options: Any) -> Iterator[Model]:
    """`patch_model` for the length of a `with` block, undone on exceptions too.

    A model that is patched already keeps its patch after the block, with the options it had.

    Args:
        model: as for `patch_model`.
        config: as for `patch_model`.
        **options: as for `patch_model`.

    Yields:
        The same object, patched.

    Raises:
        TypeError, ValueError, RuntimeError: as for `patch_model`.
        RelayError: as for `patch_model`, and where the block ends as for `unpatch_model`.

    Example:
        >>> from relay_hf.testing import tiny_model
        >>> model = tiny_model("llama")
        >>> with patched(model, policy="always"):
        ...     print(model.relay.config.policy)
        always
        >>> hasattr(model, "relay")
        False
    """
    hooks = _hooks_of(generating_model(model))
    before = None if hooks is None else hooks.config
    patch_model(model, config, **options)
    try:
        yield model
    finally:
        if hooks is not None and before is not None:
            hooks.configure(before)
        else:
            unpatch_model(model)


def _hooks_of(model: PreTrainedModel) -> ModelHooks | None:
    found = model.__dict__.get("relay")
    if not isinstance(found, Relay):
        return None
    if found._hooks.model is not model:
        raise RelayError(
            "model is a shallow copy of a patched model, and shares the handle of the one that it was copied from: "
            "unpatch that one before you copy it, or use copy.deepcopy."
        )
    return found._hooks
