"""Where a model runs, which is not always where its weights are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def device_of(model: PreTrainedModel) -> torch.device:
    """The device that a model's first module runs on.

    Weights that accelerate offloads are on PyTorch's "meta" device until their module runs; then its hook puts them
    where the module is to run.
    """
    if model.device.type == "meta":
        for module in model.modules():
            device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
            if device is not None:
                return torch.device(device)
    return model.device


def stream_of(device: torch.device) -> int | None:
    """The stream that a call of this thread computes on; None where there are no streams."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else None
