"""How PyTorch is told to compute: keys and values, and CUDA graphs, are those of the settings they were made under."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch


def arithmetic() -> tuple[Hashable, ...]:
    """TF32 and other reduced precision of float32 and half precision, and determinism, as they are set now."""
    backends: Any = torch.backends
    products = backends.cuda.matmul
    if hasattr(products, "fp32_precision"):  # since PyTorch 2.9
        kinds = (products, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv)
        single: tuple[Hashable, ...] = tuple(kind.fp32_precision for kind in kinds)
    else:
        single = products.allow_tf32, backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    half = products.allow_bf16_reduced_precision_reduction, products.allow_fp16_reduced_precision_reduction
    return *single, *map(repr, half), torch.are_deterministic_algorithms_enabled()
