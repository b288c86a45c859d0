"""accelerate: models whose weights come from CPU memory or disk, module by module, while they run."""

import accelerate
import pytest
import torch

from relay_hf import showcase

ROWS = 4


@pytest.fixture
def inputs(tokenizer):
    return tokenizer(showcase.support_prompts(ROWS), padding=True, return_tensors="pt")


