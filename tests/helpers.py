"""What several test files need."""

from __future__ import annotations

from typing import Any

import torch


def generate(model: Any, inputs: dict, **options: Any) -> torch.Tensor:
    """Twelve greedy tokens: `[B, L + 12]`."""
    return model.generate(**inputs, **{"max_new_tokens": 12, "min_new_tokens": 12, **options})
