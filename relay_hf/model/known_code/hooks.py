"""Forward hooks that are known to change nothing, or to act token by token."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import Any, NamedTuple

from torch import nn

from ..upstream.models import HARMLESS_HOOKS
from .origins import described, file_of, is_in, is_known


class _KnownHook(NamedTuple):
    """Hooks of a package.

    Attributes:
        package: its name.
        file: the end of the path of their file.
        name: the start of their qualified names.
        holds: whether a hook (its object, its module) acts token by token, as it is now.
    """

    package: str
    file: str
    name: str
    holds: Callable[[Any, nn.Module], bool] = lambda hook, module: True


def _one_rank(hook: Any, module: nn.Module) -> bool:
    """Whether FSDP2 gathers weights from one rank only. Ranks that decide for themselves would wait for each other."""
    groups = getattr(hook.__self__, "_fsdp_param_groups", None)
    return groups is not None and all(group.mesh_info.mesh.size() == 1 for group in groups)


_HOOKS = (
    *(_KnownHook("transformers", file, name) for file, name in HARMLESS_HOOKS),
    # They compute a weight from others. In training mode spectral normalization changes a buffer in each forward.
    _KnownHook("torch", "nn/utils/weight_norm.py", "WeightNorm."),
    _KnownHook("torch", "nn/utils/prune.py", "BasePruningMethod."),
    _KnownHook("torch", "nn/utils/spectral_norm.py", "SpectralNorm.", lambda hook, module: not module.training),
    _KnownHook("torch", "distributed/fsdp/_fully_shard/_fsdp_state.py", "FSDPState.", _one_rank),
    # It decompresses the weights in the first forward, and goes.
    _KnownHook("compressed_tensors", "model_compressors/model_compressor.py", "ModelCompressor.add_decompress_hook."),
    # Quanto's activations have one scale, which was calibrated before.
    _KnownHook("optimum", "quanto/nn/qmodule.py", "QModuleMixin.quantize_"),
)


def unknown_hook(hook: Any, module: nn.Module) -> str | None:
    """The origin of a forward hook of `module` that is not known, or None."""
    code = _code_of(hook)
    if code is None:
        return described(type(hook))
    owner = getattr(hook, "__self__", None if isinstance(hook, FunctionType | partial) else hook)
    for known in _HOOKS:
        if is_in(code.co_filename, known.package, known.file) and code.co_qualname.startswith(known.name):
            # A user's class may inherit a package's hook, and change what it calls.
            if owner is not None and not is_in(file_of(type(owner).__module__) or "", known.package):
                return described(type(owner))
            return None if known.holds(hook, module) else described(code)
    return described(code)


def _code_of(hook: Any) -> CodeType | None:
    """The code of a hook, inside the wrappers that its own package has put around it."""
    while isinstance(hook, partial):
        hook = hook.func
    if not isinstance(hook, FunctionType | MethodType):
        hook = type(hook).__call__
    code = getattr(hook, "__code__", None)
    while code is not None and is_known(code.co_filename) and hasattr(hook, "__wrapped__"):
        hook = hook.__wrapped__
        code = getattr(hook, "__code__", None)
    return code
