"""RelayConfig: the options of `patch_model`, with units, defaults and checks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import nn

_CHOICES: dict[str, tuple[Any, ...]] = {
    "policy": ("auto", "always", "off"),
    "backend": ("auto", "triton", "torch"),
    "cuda_graphs": ("auto", True, False),
    "compile": ("auto", True, False),
    "linears": ("auto", True, False),
}


@dataclass(frozen=True)
class RelayConfig:
    """Options of `patch_model`.

    Attributes:
        policy: `"auto"` relays a call if that is expected to be faster, `"always"` if it is exact, `"off"` never.
        min_prefix_length: fewest tokens a shared prefix must have to be relayed (tokens, at least 1).
        backend: what computes attention: `"torch"`, `"triton"` (needs a CUDA device; calls elsewhere are left to
            stock), or `"auto"` for the Triton kernels where they run and torch elsewhere.
        cuda_graphs: replay decode steps as CUDA graphs: `"auto"` where enough steps may follow for a capture to pay,
            `True` from the second step on, `False` never. No effect on a CPU.
        compile: compile decode steps by torch.compile, on a CPU: `"auto"` once a model has made, or may be about to
            make, 1,500 steps; `True` at the first step; `False`, the default, never. Compiling takes seconds, once a
            model. Copies of the weights in oneDNN's order are kept beside the plain ones: as many bytes as those, and
            half of the free memory at most.
        linears: compute the linear layers of relayed forwards by oneDNN, on a CPU in float32: `"auto"` for layers that
            are large enough, where oneDNN is at least 1.25 times as fast as PyTorch's own choice (measured once a
            process, in 20 ms), `True` for all, `False` for none.
        max_store_bytes: budget for prefixes kept between calls (bytes); the least recently used leave first. A text
            such as `"1GB"`, `"1.5GiB"` or `"512MiB"` becomes that many bytes. `None` is 1 GiB on a CPU and a tenth of
            the device's memory on a GPU; 0 keeps nothing.
        trust: the modules for whose code and forward hooks you vouch: each treats every token by itself, as it would
            alone in its row. Names of modules, as `model.named_modules()` has them, or patterns of names
            (`"model.layers.*.mlp"`); or a function of a name and its module. `""` is the model itself, and the
            functions of PyTorch and of files of models. Code of Transformers, PyTorch, accelerate, peft and TRL, and
            that of the model's own file, needs no such word.
    """

    policy: Literal["auto", "always", "off"] = "auto"
    min_prefix_length: int = 16
    backend: Literal["auto", "triton", "torch"] = "auto"
    cuda_graphs: Literal["auto", True, False] = "auto"
    compile: Literal["auto", True, False] = False
    linears: Literal["auto", True, False] = "auto"
    max_store_bytes: int | str | None = None  # an int or None, once the options are made
    trust: Sequence[str] | Callable[[str, nn.Module], bool] = ()

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if not any(type(value) is type(choice) and value == choice for choice in choices):
                raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}.")
        check_count("min_prefix_length", self.min_prefix_length, least=1)
        if self.max_store_bytes is not None:
            object.__setattr__(self, "max_store_bytes", _bytes("max_store_bytes", self.max_store_bytes))
        if not callable(self.trust):
            names = self.trust if isinstance(self.trust, list | tuple) else (None,)
            if not all(isinstance(name, str) for name in names):
                raise TypeError(
                    "trust must be a list of names of modules, such as ['model.layers.*.mlp'], or a function of a name "
                    f"and its module; got {self.trust!r}."
                )
            object.__setattr__(self, "trust", tuple(self.trust))

    @classmethod
    def build(cls, base: RelayConfig | None, options: dict[str, Any]) -> RelayConfig:
        """`base` (or the defaults) with `options` on top; an unknown option is an error that lists the known ones."""
        if base is not None and not isinstance(base, RelayConfig):
            raise TypeError(f"config must be a RelayConfig or None; got {type(base).__name__}.")
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise TypeError(f"unknown option {unknown[0]!r}; the options are {', '.join(known)}.")
        return dataclasses.replace(base or cls(), **options)


def check_count(name: str, value: object, least: int) -> None:
    """Raise an error that names the argument if it is no int of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int; got {value!r} of type {type(value).__name__}.")
    if value < least:
        raise ValueError(f"{name} must be at least {least}; got {value}.")


def _bytes(name: str, size: object) -> int:
    """A size as a number of bytes. An error names the argument and the forms that it may have."""
    forms = "an int (bytes), or a text such as '1GB', '500MB' (powers of 1000), '1.5GiB' or '512MiB' (powers of 1024)"
    if isinstance(size, bool) or not isinstance(size, int | str):
        raise TypeError(f"{name} must be {forms}; got {size!r} of type {type(size).__name__}.")
    if isinstance(size, int):
        check_count(name, size, least=0)
        return size
    from accelerate.utils import convert_file_size_to_int  # here, because it takes longer than all of this module

    try:
        count: int = convert_file_size_to_int(size.strip().upper())  # it takes "1Gb" and "1gb" for bits
    except (OverflowError, ValueError):
        raise ValueError(f"{name} must be {forms}; got {size!r}.") from None
    return count
