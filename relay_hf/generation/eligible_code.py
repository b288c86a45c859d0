"""Checks whether all code that runs inside a model acts token by token. Each refusal is a reason for the report."""

from __future__ import annotations

from fnmatch import fnmatchcase
from types import BuiltinFunctionType

from torch import nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks

from ..config import RelayConfig
from ..model.attention_choice import users_implementation
from ..model.known_code import (
    Trust,
    dependent_layers,
    mode_around,
    replaced_operator,
    unknown_attention,
    unknown_class,
    unknown_code,
    unknown_hook,
)
from ..model.upstream.attention import eager_attention, registered_attention, registered_experts, registered_mask
from ..model.upstream.caches import CACHE_CLASSES
from ..model.upstream.names import KNOWN_ATTENTION
from ..model.view import ModelView
from ..reasons import Reason, Refusal


def code_refusal(view: ModelView, config: RelayConfig) -> Refusal | None:
    """Why code inside the model forbids relaying, or None: it would see a prefix apart from the rows."""
    trusted = _trust(view, config)
    try:
        return _attention_refusal(view) or _module_refusal(view, trusted) or _hook_refusal(view, trusted)
    except Exception as error:  # an attribute that raises when it is looked at, and code without end
        return Reason.CODE_RAISED.of(error=type(error).__name__, message=str(error).partition("\n")[0])


def _attention_refusal(view: ModelView) -> Refusal | None:
    """Why the model's attention function may compute something else than attention, or None.

    A relayed forward computes attention by the operator, and does not call that function. So nobody can vouch for it.
    """
    for config in view.configs:
        name = users_implementation(config)
        if name is not None and name not in KNOWN_ATTENTION:
            return Reason.ATTENTION.of(name=name)
        for what, function in (("", registered_attention(name)), ("mask of the ", registered_mask(name))):
            origin = None if function is None else unknown_attention(function, view.modules)
            if origin is not None:
                return Reason.ATTENTION_REPLACED.of(what=what, name=name, origin=origin)
    if not isinstance(nn.functional.scaled_dot_product_attention, BuiltinFunctionType):
        return Reason.SDPA_REPLACED.of()
    for cache in CACHE_CLASSES:
        origin = unknown_class(cache)
        if origin is not None:
            return Reason.CACHE_REPLACED.of(kind=cache.__name__, origin=origin)
    for kind in dict.fromkeys(map(type, view.modules)):
        eager = eager_attention(kind)
        origin = None if eager is None else unknown_attention(eager, view.modules, kind.__module__)
        if origin is not None:
            return Reason.EAGER_REPLACED.of(module=kind.__module__, origin=origin)
    return None


def _module_refusal(view: ModelView, trusted: Trust) -> Refusal | None:
    """Why the code of the model's modules forbids relaying, or None."""
    for config in view.configs if not trusted(view.model) else ():
        name, function = registered_experts(config) or ("", None)
        origin = None if function is None else unknown_attention(function, view.modules)
        if origin is not None:
            return Reason.FUNCTION_REPLACED.of(function=f"of experts {name!r}", origin=origin)
    if not trusted(view.model):
        mode, operator = mode_around(), replaced_operator()
        if mode is not None:
            return Reason.MODE.of(mode=mode)
        if operator is not None:
            return Reason.OPERATOR.of(operator=operator)
    unknown = unknown_code(view.model, view.modules, trusted)
    if unknown is None:
        for module, why in dependent_layers(view.modules):
            if not trusted(module):
                return Reason.QUANTIZED_BY_BATCH.of(module=type(module).__name__, name=view.names[module], why=why)
        return None
    if unknown.module is None:
        return Reason.FUNCTION_REPLACED.of(function=unknown.what, origin=unknown.origin)
    return Reason.UNKNOWN_CODE.of(what=unknown.what, name=view.names[unknown.module], origin=unknown.origin)


def _hook_refusal(view: ModelView, trusted: Trust) -> Refusal | None:
    """Why forward hooks forbid relaying, or None: a hook that reads or edits activations would see other shapes."""
    if _global_forward_hooks or _global_forward_pre_hooks:
        return Reason.HOOK_ON_ALL.of()
    for module in view.modules:
        if module._forward_hooks or module._forward_pre_hooks:
            for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
                passed = view.is_own_hook(hook) or trusted(module)  # first: to find an origin takes 1 ms
                origin = None if passed else unknown_hook(hook, module)
                if origin is not None:
                    return Reason.HOOK.of(module=type(module).__name__, name=view.names[module], origin=origin)
    return None


def _trust(view: ModelView, config: RelayConfig) -> Trust:
    """Whether the user vouches for a module."""
    vouched = config.trust
    if callable(vouched):
        return lambda module: bool(vouched(view.names[module], module))
    if not vouched:
        return lambda module: False
    return lambda module: any(fnmatchcase(view.names[module], pattern) for pattern in vouched)
