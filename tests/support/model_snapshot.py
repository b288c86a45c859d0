"""What a model is made of, down to the bits of its tensors and the order of its attributes; two of these compare equal
only if nothing has changed."""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import nn

# Compared by identity alone: what they hold is not the model's own.
_OPAQUE = (
    type,
    types.BuiltinFunctionType,
    types.FunctionType,
    types.MethodType,
    types.ModuleType,
    torch.dtype,
    torch.device,
)


class Same:
    """Equal to the very same object alone, which it holds, so that no other comes to lie there."""

    def __init__(self, thing: Any) -> None:
        self.thing = thing

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.thing is other.thing

    def __repr__(self) -> str:
        return f"{type(self.thing).__name__} at {id(self.thing):#x}"


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Each object that the model holds, by its path: modules, hooks, tensors, configurations and whatever these hold.

    Beside these what its configurations are written as, and its state dict.
    """
    found: dict[str, Any] = {}
    _walk("model", model, found, {})
    for name in ("config", "generation_config"):
        config = getattr(model, name, None)
        if config is not None:
            found[f"{name} as a dictionary"] = repr(config.to_dict())
            found[f"{name} as JSON"] = config.to_json_string()
    # Properties, which say more than the fields behind them: a part may name another implementation than the whole.
    configs = {id(part.config): part.config for part in model.modules() if hasattr(part, "config")}
    found["attention"] = [getattr(config, "_attn_implementation", None) for config in configs.values()]
    found["state dict"] = [(name, _bits(tensor)) for name, tensor in model.state_dict().items()]
    return found


def _walk(path: str, thing: Any, found: dict[str, Any], seen: dict[int, str]) -> None:
    if thing is None or isinstance(thing, bool | int | float | complex | str | bytes):
        found[path] = (type(thing), repr(thing))  # a NaN is no other than itself
        return
    if id(thing) in seen:
        found[path] = seen[id(thing)], Same(thing)
        return
    seen[id(thing)] = path
    found[path] = Same(thing)
    if isinstance(thing, _OPAQUE):
        return
    if isinstance(thing, torch.Tensor):
        found[f"{path}, bits"] = (_bits(thing), thing.requires_grad, thing.device, thing.stride())
        _walk(f"{path}.grad", thing.grad if thing.is_leaf else None, found, seen)
    elif isinstance(thing, dict):
        found[f"{path}, keys"] = [repr(key) for key in thing]
    elif isinstance(thing, set | frozenset):
        found[f"{path}, elements"] = sorted(map(repr, thing))
    elif isinstance(thing, list | tuple):
        found[f"{path}, length"] = len(thing)
    attributes = getattr(thing, "__dict__", {})
    found[f"{path}, attributes"] = list(attributes)
    for name, value in list(attributes.items()):
        _walk(f"{path}.{name}", value, found, seen)
    inside = thing.items() if isinstance(thing, dict) else enumerate(thing) if isinstance(thing, list | tuple) else ()
    for key, value in list(inside):
        _walk(f"{path}[{key!r}]", value, found, seen)


def _bits(tensor: torch.Tensor) -> tuple[Any, ...]:
    if tensor.is_meta:
        return (tensor.dtype, tuple(tensor.shape))
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return (tensor.dtype, tuple(tensor.shape), flat.cpu().numpy().tobytes())


def differences(before: dict[str, Any], after: dict[str, Any]) -> dict[str, str]:
    """The paths at which two of these differ, and how."""
    nothing = "nothing"
    paths = [path for path in {**before, **after} if before.get(path, nothing) != after.get(path, nothing)]
    return {path: f"{before.get(path, nothing)!r:.200} became {after.get(path, nothing)!r:.200}" for path in paths}


def members(model: nn.Module) -> dict[str, Any]:
    """What every module holds in its `__dict__`, by path: enough where the model generates in between, and quick.

    What has been generated leaves its marks deeper down, in the handle and its counts; `snapshot` sees these too.
    """
    found = {}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name in ("_modules", "_parameters", "_buffers"):
                found[path, name] = {key: id(part) for key, part in value.items()}
            else:
                found[path, name] = dict(value) if isinstance(value, dict) else value
    return found
