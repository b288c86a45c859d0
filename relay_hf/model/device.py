"""The device of a model, and how it computes there: dtype, autocast, PyTorch's settings, CUDA stream, free memory."""

from __future__ import annotations

import os
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Messages of a lack of memory for which torch has no exception class: CUDA's, and those of torch's allocators on a CPU
# (POSIX, Windows).
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


class ComputeContext(NamedTuple):
    """All that the numbers of a forward depend on, beside the model's weights.

    Keys and values that were computed in one context are not used in another.

    Attributes:
        device: the device that the model's first module runs on.
        dtype: the dtype of the model's weights.
        autocast: the dtype that autocast casts to, or None where it is off.
        arithmetic: PyTorch's settings: see `arithmetic`.
    """

    device: torch.device
    dtype: torch.dtype
    autocast: torch.dtype | None
    arithmetic: tuple[Hashable, ...]

    @classmethod
    def of(cls, model: PreTrainedModel) -> ComputeContext:
        """The context that a forward of the model would run in now, in this thread."""
        return cls(device_of(model), model.dtype, autocast_of(model), arithmetic())


def device_of(model: PreTrainedModel) -> torch.device:
    """The device that a model's first module runs on.

    Weights that accelerate offloads are on PyTorch's "meta" device until their module runs. Then accelerate's hook
    moves them to the device that the module runs on.
    """
    if model.device.type == "meta":
        for module in model.modules():
            device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
            if device is not None:
                return torch.device(device)
    return model.device


def autocast_of(model: PreTrainedModel) -> torch.dtype | None:
    """The dtype that autocast casts to where the model runs, or None."""
    device_type = device_of(model).type
    # PyTorch raises when it is asked for the autocast of the "meta" device, on which a model without weights is.
    known = torch.amp.is_autocast_available(device_type)
    return torch.get_autocast_dtype(device_type) if known and torch.is_autocast_enabled(device_type) else None


def arithmetic() -> tuple[Hashable, ...]:
    """PyTorch's settings: TF32 and other reduced precision of float32 and half precision, and determinism."""
    backends: Any = torch.backends
    products = backends.cuda.matmul
    if hasattr(products, "fp32_precision"):  # since PyTorch 2.9
        kinds = (products, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv)
        single: tuple[Hashable, ...] = tuple(kind.fp32_precision for kind in kinds)
    else:
        single = products.allow_tf32, backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    half = products.allow_bf16_reduced_precision_reduction, products.allow_fp16_reduced_precision_reduction
    return *single, *map(repr, half), torch.are_deterministic_algorithms_enabled()


def stream_of(device: torch.device) -> int | None:
    """The CUDA stream that a call of this thread computes on; None where there are no streams."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else None


def store_key(model: PreTrainedModel) -> Hashable:
    """The key of the kept prefixes that a call can use: its compute context and its CUDA stream.

    A call on another stream would not wait until this stream has computed a prefix, and might still read memory that
    this stream has freed.
    """
    return (ComputeContext.of(model), stream_of(device_of(model)))


def free_bytes(device: torch.device) -> int:
    """Bytes that could be allocated now; 0 where the system does not say."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if device.type == "cpu" else 0
    except (AttributeError, OSError, ValueError):
        return 0


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that a device or the host ran out of memory."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in _OUT_OF_MEMORY)


def on_host(mask: Tensor) -> np.ndarray:
    """A mask as a numpy array of bool, from any device.

    Numpy handles ids and masks of whole prompts. Torch starts its threads for 32,768 elements and more, which takes
    20 ms where other work holds the cores. Numpy needs 0.02 ms for 65,536 elements on one core.
    """
    if mask.device.type != "cpu" or mask.dtype == torch.bfloat16:  # bool is an eighth to copy; numpy has no bfloat16
        mask = mask.bool()
    return mask.detach().cpu().numpy() != 0
